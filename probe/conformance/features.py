"""What a model's attention has, as its calls, its modules and its positions show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from probe.hooks.models.huggingface import HuggingFaceModel
from probe.kernels.call import Call


@dataclass(eq=False)
class Features:
    """What was seen in calls, layer by layer."""

    layers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By layer, what its calls have."""

    def see(self, call: Call) -> None:
        """Take a call's facts; its tensors are not kept."""
        layer = call.layer if call.part == "self" else 1000 * (1 + (call.part == "cross")) + call.layer
        self.layers[layer] = {
            "heads": call.num_heads,
            "kv_heads": call.num_kv_heads,
            "widths": (call.key.shape[-1], call.value.shape[-1]),
            "window": call.window,
            "softcap": call.softcap,
            "sinks": call.sink_logit is not None,
            "alibi": call.alibi_slope is not None,
            "bias": call.distance_bias is not None,
            "documents": call.document is not None,
            "causal": call.causal,
            "part": call.part,
        }

    def words(self, model: HuggingFaceModel) -> list[str]:
        """Return what attention has, in the table's words."""
        known = [*self._of_calls(), *_of_positions(model), *_of_modules(model)]
        return list(dict.fromkeys([*known, *_of_the_rest(model, set(self.layers))]))

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


def _of_positions(model: HuggingFaceModel) -> Iterator[str]:
    found = model.positions(1)
    kinds = [layer["kind"] for layer in found["layers"].values()]
    for kind in dict.fromkeys(kinds):
        some = "" if kinds.count(kind) == len(kinds) else " in some layers"
        if kind == "rotary":
            yield f"RoPE{some}"
        elif kind == "none":
            yield f"no positions{some}"
        elif kind in ("learned", "sinusoidal"):
            yield f"{kind} positions"
    widths = {layer.head_dim for layer in model.attention_layers.values()}
    for table in found["rotary"].values():
        if table["type"] != "default":
            yield _ROPE.get(table["type"], f"{table['type']} RoPE")
        if table["rotated_channels"] < min(widths):
            yield "partial RoPE"


_ROPE = {"llama3": "Llama 3 RoPE", "yarn": "YaRN", "longrope": "LongRoPE", "dynamic": "dynamic NTK"}
_QUERY_NORMS = ("q_norm", "query_norm", "q_layernorm", "query_layernorm", "qk_norm", "q_ln", "norm_q")


def _of_modules(model: HuggingFaceModel) -> Iterator[str]:
    config = model.hf.config.get_text_config()
    if getattr(config, "kv_lora_rank", None):
        yield "MLA"
    modules = [each for layer in model.attention_layers.values() if (each := layer.module()) is not None]
    if any(getattr(module, name, None) is not None for module in modules for name in _QUERY_NORMS):
        yield "QK-norm"


def _of_the_rest(model: HuggingFaceModel, attending: set[int]) -> Iterator[str]:
    if model.recurrent_layers:
        everywhere = set(model.recurrent_layers) >= set(range(model.num_layers))
        beside = attending & set(model.recurrent_layers)
        yield "recurrent beside attention" if beside else "recurrent" if everywhere else "recurrent in some layers"
    elif set(range(model.num_layers)) - attending:
        yield "layers without attention"
    if any("experts" in name.rsplit(".", 1)[-1] for name, _ in model.hf.named_modules()):
        yield "experts"
