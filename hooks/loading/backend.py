"""The ways in which a model is had: which libraries there are, and how each is told and opened."""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from transformers import PreTrainedModel

from probe import discovery
from probe.errors import NotAvailable, NotReproducible, UsageError
from probe.hooks.models.huggingface import HuggingFaceModel


class Backend(ABC):
    """One library that models are had by: derive from it, in a file of the subclass's own name in `backends`.

    What it loads offers what `HuggingFaceModel` offers, so that nothing above it knows which library it is.
    """

    package: ClassVar[str]
    """The library's import name."""
    extra: ClassVar[str | None] = None
    """The extra of this package that brings the library; None where it is always there."""
    can_be_remote: ClassVar[bool] = False
    """Whether it can run a model elsewhere."""

    @abstractmethod
    def recognises(self, model: Any) -> bool:
        """Whether `model` is an object of this library; imports nothing."""

    @abstractmethod
    def load(self, model: Any, **options: Any) -> HuggingFaceModel:
        """Open a model by name, or wrap an object of the library; `options` are those of `huggingface.load`.

        A library that can run a model elsewhere takes `remote` among them.
        """

    @abstractmethod
    def transformers_model(self, model: Any) -> PreTrainedModel:
        """Return the transformers model inside an object of this library: the very one, never a copy."""

    def check_installed(self) -> None:
        """Raise `NotAvailable` naming the extra where the library is missing."""
        if importlib.util.find_spec(self.package) is None:
            raise NotAvailable(
                f"the backend {type(self).__name__} needs {self.package}, which is not installed: "
                f"pip install 'longcontext-probe[{self.extra}]'"
            )


def load(model: Any, *, backend: str | None = None, remote: bool = False, **options: Any) -> HuggingFaceModel:
    """Load a model by specimen name, folder or hub id, or take a model object that is already there.

    `backend` is a library's name (`probe list backends`); without it an object is taken for what it is, and a name is
    opened with transformers. With `remote` the model runs on NDIF by nnsight: **the prompt leaves the machine**, and
    the queries, keys and values come back to be reduced here (see docs/backends.md). The other `options` (tokenizer,
    device, dtype, revision, attention_implementation, device_map, trust_remote_code) are those of
    `probe.hooks.models.huggingface.load`. An object is never copied. Raises `UsageError` for a backend that there is
    not, `NotAvailable` for a library or a model that is not there.
    """
    if isinstance(model, HuggingFaceModel):
        if (backend or model.backend) != model.backend:
            raise UsageError(f"{model.name} is loaded by {model.backend} already, so not by {backend}")
        return model
    name = backend or _library_of(model, remote)
    chosen: Backend = discovery.get("backends", name)()
    chosen.check_installed()
    if remote and not chosen.can_be_remote:
        raise UsageError(f"the backend {name} runs models on this machine alone; remote is for nnsight")
    loaded = chosen.load(model, **options, **({"remote": True} if remote else {}))
    if isinstance(model, str | os.PathLike) and options.get("tokenizer") is None:
        loaded.opened = {"model": os.fspath(model), "backend": name, "remote": remote, **options}
    return loaded


def transformers_model_of(model: Any) -> PreTrainedModel:
    """Return the transformers model inside whatever is given: a loaded model, an object of a backend, or the bare one.

    What an intervention acts on. Raises `NotReproducible` for a model that runs elsewhere.
    """
    if isinstance(model, HuggingFaceModel):
        if model.is_remote:
            raise NotReproducible(
                f"{model.name}: interventions, and what reads weights, are not sent to NDIF; "
                "run the model here for them"
            )
        return model.hf
    backend: Backend = discovery.get("backends", _library_of(model, False))()
    return backend.transformers_model(model)


def named_only(backend: str, model: Any, instead: str) -> str:
    """Return `model` as a name; raises `UsageError` for an object that the backend would have to change."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    raise UsageError(
        f"backend={backend!r} takes a name or an object of its own, not {type(model).__module__}."
        f"{type(model).__name__}: {instead}"
    )


def _library_of(model: Any, remote: bool) -> str:
    every = {name: discovery.get("backends", name) for name in discovery.names("backends")}
    for name, kind in every.items():
        if name != "huggingface" and kind().recognises(model):
            return name
    if remote and isinstance(model, str | os.PathLike):
        return next(name for name, kind in every.items() if kind.can_be_remote)
    return "huggingface"
