"""Models of nnsight, here or on NDIF."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any, ClassVar

from transformers import AutoTokenizer, PreTrainedModel

from probe.errors import NotAvailable, NotReproducible, UsageError
from probe.hooks.loading.backend import Backend, named_only
from probe.hooks.models import huggingface
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.models.remote_model import RemoteModel


class nnsight(Backend):
    """nnsight: a `TransformersModel`, `LanguageModel` or `NNsight`, or a name; on NDIF with `remote=True`."""

    package: ClassVar[str] = "nnsight"
    extra: ClassVar[str | None] = "nnsight"
    can_be_remote: ClassVar[bool] = True

    def recognises(self, model: Any) -> bool:
        """Whether it is one of nnsight's, the root of its tree."""
        library = sys.modules.get("nnsight")
        return library is not None and isinstance(model, library.Envoy)

    def load(self, model: Any, *, remote: bool = False, **options: Any) -> HuggingFaceModel:
        """Wrap an object of nnsight's, or make one of a model that is found by name.

        With `remote` nothing is loaded but the configuration and the tokenizer, and `remote_gigabytes` says what one
        request may bring back. An object that has no weights yet gets them by its own `dispatch`.
        """
        if remote:
            return self._remote(model, options)
        if "remote_gigabytes" in options:
            raise UsageError("remote_gigabytes is for a model on NDIF, and remote was not asked for")
        if self.recognises(model):
            tokenizer = options.pop("tokenizer", None) or getattr(model, "tokenizer", None)
            wrapped = huggingface.load(self.transformers_model(model), tokenizer=tokenizer, **options)
            return _seen_by_nnsight(model, wrapped)
        name = named_only(
            "nnsight", model, "nnsight wraps every forward of the model that it is given, so do it yourself "
            "(nnsight.NNsight(model)) and give that",
        )  # fmt: skip
        found = huggingface.load(name, **options)
        from nnsight import NNsight, TransformersModel

        if found.tokenizer is None:
            return _seen_by_nnsight(NNsight(found.hf), found)
        return _seen_by_nnsight(TransformersModel(found.hf, task="text-generation", tokenizer=found.tokenizer), found)

    def transformers_model(self, model: Any) -> PreTrainedModel:
        """Return the module that it wraps, loaded if it was not; `NotReproducible` for any but a transformers model."""
        if getattr(model, "dispatched", True) is False:
            model.dispatch()
        inside = model._module
        if not isinstance(inside, PreTrainedModel):
            raise NotReproducible(
                f"{type(model).__name__}: what it wraps is {type(inside).__name__}, not a transformers model"
            )
        return inside

    def _remote(self, model: Any, options: dict[str, Any]) -> HuggingFaceModel:
        tokenizer, size = options.pop("tokenizer", None), options.pop("remote_gigabytes", None)
        revision = options.pop("revision", None)
        if chosen := sorted(name for name, value in options.items() if value not in (None, False)):
            raise UsageError(f"{', '.join(chosen)} cannot be chosen for a model on NDIF, which is loaded there")
        name = None if self.recognises(model) else named_only("nnsight", model, "NDIF runs models that it has by name")
        if name is not None:
            model = _without_weights(name, tokenizer, {"revision": revision} if revision else {})
        if not hasattr(model, "to_model_key"):
            raise UsageError(f"{type(model).__name__} has no name on NDIF: give nnsight.TransformersModel(hub id)")
        sized: dict[str, Any] = {} if size is None else {"remote_gigabytes": float(size)}
        return RemoteModel(model, tokenizer, name=name, **sized)


def _without_weights(name: str, tokenizer: Any, revision: dict[str, str]) -> Any:
    from nnsight import TransformersModel

    try:
        # Given the tokenizer's name alone, nnsight does not find it for every model.
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **revision)
        return TransformersModel(name, task="text-generation", tokenizer=tokenizer, **revision)
    except Exception as error:
        raise NotAvailable(
            f"model {name!r}: its configuration and its tokenizer, which a request to NDIF is made with, could not be "
            f"had from the hub: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error


def _seen_by_nnsight(envoy: Any, inside: HuggingFaceModel) -> HuggingFaceModel:
    """Return what was loaded, which may be an encoder or have one, as a model that nnsight has."""
    kind: Any = type("NnsightModel", (NnsightModel, type(inside)), {"__doc__": NnsightModel.__doc__})
    model: HuggingFaceModel = kind.__new__(kind)
    vars(model).update(vars(inside), envoy=envoy)
    return model


class NnsightModel(HuggingFaceModel):
    """A model that nnsight wraps, watched through the transformers model inside; nnsight's traces go on as ever."""

    backend = "nnsight"
    envoy: Any
    """nnsight's model."""

    def provenance(self) -> dict[str, Any]:
        """What the model is and what runs it."""
        facts = super().provenance()
        facts["versions"]["nnsight"] = version("nnsight")
        return facts
