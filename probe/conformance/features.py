"""What a model's attention has, as its calls, its modules and its positions show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from probe.hooks.huggingface import HuggingFaceModel
from probe.kernels.call import Call


@dataclass(eq=False)
class Features:
    """What was seen in calls, layer by layer."""

    layers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By layer, what its calls have."""

    def see(self, call: Call) -> None:
        """Take a call's facts; its tensors are not kept."""
        self.layers[call.layer] = {
            "heads": call.num_heads,
            "kv_heads": call.num_kv_heads,
            "widths": (call.key.shape[-1], call.value.shape[-1]),
            "window": call.window,
            "softcap": call.softcap,
            "sinks": call.sink_logit is not None,
            "alibi": call.alibi_slope is not None,
            "bias": getattr(call, "distance_bias", None) is not None,
            "documents": call.document is not None,
            "causal": call.causal,
            "part": getattr(call, "part", "self"),
        }

    def words(self, model: HuggingFaceModel) -> list[str]:
        """Return what attention has, in the table's words."""
        return [*self._of_calls(), *_of_modules(model), *_of_the_rest(model, set(self.layers))]

    def _of_calls(self) -> Iterator[str]:
        def some(name: str, wanted: Any = True) -> list[int]:
            return [layer for layer, facts in self.layers.items() if facts[name] == wanted]

        def where(layers: list[int]) -> str:
            return "" if len(layers) == len(self.layers) else " in some layers"

        groups = {facts["heads"] // facts["kv_heads"] for facts in self.layers.values()}
        single = {facts["kv_heads"] for facts in self.layers.values()} == {1}
        if groups - {1}:
            yield "MQA" if single else "GQA"
        if any(key != value for key, value in (facts["widths"] for facts in self.layers.values())):
            yield "values of another width"
        windowed = [layer for layer, facts in self.layers.items() if facts["window"] is not None]
        if windowed:
            yield f"window{where(windowed)}"
        if chunked := some("documents"):
            yield f"chunked attention{where(chunked)}"
        if any(facts["softcap"] is not None for facts in self.layers.values()):
            yield "softcap"
        if sinks := some("sinks"):
            yield f"learned sinks{where(sinks)}"
        if any(facts["alibi"] for facts in self.layers.values()):
            yield "ALiBi"
        if any(facts["bias"] for facts in self.layers.values()):
            yield "relative bias"
        if bidirectional := some("causal", False):
            yield f"bidirectional{where(bidirectional)}"
        if some("part", "cross"):
            yield "cross-attention"


_QUERY_NORMS = ("q_norm", "query_norm", "q_layernorm", "query_layernorm", "qk_norm", "q_ln", "norm_q")


def _of_modules(model: HuggingFaceModel) -> Iterator[str]:
    config = model.hf.config.get_text_config()
    if getattr(config, "kv_lora_rank", None):
        yield "MLA"
    modules = [each for layer in model.attention_layers.values() if (each := layer.module()) is not None]
    if any(getattr(module, name, None) is not None for module in modules for name in _QUERY_NORMS):
        yield "QK-norm"


def _of_the_rest(model: HuggingFaceModel, attending: set[int]) -> Iterator[str]:
    recurrent = set(range(model.num_layers)) - attending
    if recurrent:
        yield "recurrent" if not attending else "layers without attention"
    if any("experts" in name.rsplit(".", 1)[-1] for name, _ in model.hf.named_modules()):
        yield "experts"
