"""Models of TransformerLens 4."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar

from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.bridge import bridge_components
from probe.hooks.attention.interface import named
from probe.hooks.fwd_hooks import FwdHook, fwd_hooks
from probe.hooks.loading.backend import Backend, named_only
from probe.hooks.models import huggingface
from probe.hooks.models.bridge_check import compared_with_pattern
from probe.hooks.models.huggingface import HuggingFaceModel, OnCall


class transformer_lens(Backend):
    """TransformerLens 4: a `TransformerBridge`, or the name of a model to make one of."""

    package: ClassVar[str] = "transformer_lens"
    extra: ClassVar[str | None] = "lens"

    def recognises(self, model: Any) -> bool:
        """Whether it is a bridge."""
        library = sys.modules.get("transformer_lens.model_bridge")
        return library is not None and isinstance(model, library.TransformerBridge)

    def load(self, model: Any, **options: Any) -> HuggingFaceModel:
        """Wrap a bridge, or make one of a model that is found by name, with every weight from its checkpoint.

        Raises `UsageError` for a transformers model object: a bridge would take its modules' place in it.
        """
        if not self.recognises(model):
            return self._booted(model, options)
        hf = self.transformers_model(model)
        tokenizer = options.pop("tokenizer", None) or model.tokenizer
        # Checks the options, and puts the transformers model where it is asked to be.
        wrapped = huggingface.load(hf, tokenizer=tokenizer, **options)
        model.eval()
        return TransformerLensModel(model, wrapped)

    def transformers_model(self, model: Any) -> PreTrainedModel:
        """Return the model whose modules the bridge's components stand in; `NotReproducible` where it has none."""
        inside = getattr(model, "original_model", None)
        if not isinstance(inside, PreTrainedModel):
            raise NotReproducible(
                f"{type(model).__name__}: what it bridges is {type(inside).__name__}, not a transformers model"
            )
        return inside

    def _booted(self, model: Any, options: dict[str, Any]) -> HuggingFaceModel:
        name = named_only(
            "transformer_lens",
            model,
            "a bridge changes the model that it is made of, so make it yourself "
            "(TransformerBridge.boot_transformers(name, hf_model=model)) and give that",
        )
        if options.get("device_map") is not None:
            raise UsageError("device_map: boot the bridge with it yourself, and give that")
        found = huggingface.load(name, **options)
        from transformer_lens.model_bridge import TransformerBridge

        where = str(getattr(found.hf.config, "_name_or_path", "") or name)
        bridge = TransformerBridge.boot_transformers(
            where, hf_model=found.hf, tokenizer=found.tokenizer, dtype=found.dtype, device=str(found.device)
        )
        bridge.eval()
        bridge.requires_grad_(False)
        named(found.hf, name)
        return TransformerLensModel(bridge, found)


class TransformerLensModel(HuggingFaceModel):
    """A `TransformerBridge`, watched through the transformers model in whose modules' places its components stand."""

    backend = "transformer_lens"

    def __init__(self, bridge: Any, inside: HuggingFaceModel) -> None:
        if type(inside) is not HuggingFaceModel:
            raise NotReproducible(
                f"{inside.name}: encoders are not read through TransformerLens; load it with backend='huggingface'"
            )
        vars(self).update(vars(inside))
        self.bridge = bridge
        """The bridge."""
        self._refusal: NotReproducible | None = None
        self.compared_with_pattern = ""
        """How the calls of a short prompt compared with the bridge's own pattern, in words."""
        # Now, so that hooks that are added later do not see the short prompts that this takes.
        try:
            self.compared_with_pattern = compared_with_pattern(self.hf)
        except NotReproducible as error:
            self._refusal = error

    @contextmanager
    def calls(self, *readers: Any, **named_readers: Any) -> Iterator[None]:
        """As elsewhere; a bridge whose calls do not give the pattern that it computes by itself is refused."""
        if self._refusal is not None:
            raise self._refusal
        with super().calls(*readers, **named_readers):
            yield

    @property
    def attention_implementation(self) -> str:
        """How the bridge attends, and how it does while it is watched."""
        if not bridge_components(self.hf):
            return super().attention_implementation
        return "the bridge's own; while it is watched without its pattern, which changes it by rounding"

    @property
    def attention_in_chunks(self) -> str:
        """How the second and later chunks of a prompt attend."""
        return "past and diagonal merged by log-sum-exp where the mask is plainly causal, else with the model's mask"

    def provenance(self) -> dict[str, Any]:
        """What the model is and what runs it; which components attend, and whether the weights were processed."""
        facts = super().provenance()
        facts["versions"]["transformer_lens"] = version("transformer-lens")
        facts["bridge"] = {
            "attention": sorted({type(each).__name__ for each in bridge_components(self.hf)}),
            "compared_with_pattern": self.compared_with_pattern,
            "compatibility_mode": bool(getattr(self.bridge, "compatibility_mode", False)),
        }
        return facts

    def fwd_hooks(self, on_call: OnCall) -> list[FwdHook]:
        """Return hooks for `bridge.run_with_hooks(tokens, fwd_hooks=…)`; see `probe.hooks.fwd_hooks`."""
        return fwd_hooks(self.bridge, on_call)
