"""The ways in which a model takes in tokens, each captured as the toolkit captures it: arrays by layer and name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from probe.capture import trace
from probe.conformance import recurrent
from probe.conformance.features import Features
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.kernels.call import Call
from probe.kernels.recurrence import Recurrence
from probe.kernels.scan import Scan
from probe.sample import Sample, Span
from probe.storage.trace_store import Trace

Array = np.ndarray[Any, Any]

STATISTICS: Final[list[Any]] = [
    "log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass", "match_mass",
    {"match_mass": {"by": "induction"}}, "mean_distance", "distance_histogram", "received_mass",
    {"received_mass": {"horizon": 16}}, "attention_map", "span_mass", "top_keys", "output_norm_share", "key_norm",
    "value_norm", "key_layer_similarity", "value_layer_similarity", "key_neighbour_similarity", "key_channel_energy",
    "key_spectrum",
]  # fmt: skip
"""What is captured of attention; a test holds that no statistic is missing."""
OF_TOKENS: Final = ["residual_norm", "residual_max", "residual_median", "loss"]
"""What is captured of the residual stream and the logits."""
CHUNK_TOKENS: Final = 7
"""Tokens of a chunk of the chunked prefill."""
NUM_TOKENS: Final = 37
"""Tokens of every prompt, those that decoding adds included."""
NUM_DECODED: Final = 5
"""Tokens that decoding answers with."""


@dataclass(eq=False)
class Captured:
    """What the toolkit says of one sample."""

    tokens: list[int]
    """The tokens that the model read, its own answer's included."""
    first_row: int
    """Position of the first decoding query."""
    layers: dict[int, dict[str, Array]]
    """By layer, arrays by name."""
    loss: Array | None = None
    """Negative log-likelihood by token."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """What the model was called with, where it was a batch; the same call gives the eager copy's answer."""
    kept: tuple[int, int] = (0, 0)
    """The sample's real tokens in that batch."""
    sample: int = 0
    """Its place in the batch."""


def spans(num_tokens: int) -> tuple[Span, ...]:
    """Return two spans of any prompt."""
    return (Span("first", 0, 3), Span("middle", num_tokens // 3, num_tokens // 2))


def prefill(model: HuggingFaceModel, tokens: list[int]) -> list[Captured]:
    """A prompt in one piece, its last token by itself."""
    return [_traced(model, tokens, chunk_tokens=2048, max_new_tokens=1)]


def chunks(model: HuggingFaceModel, tokens: list[int]) -> list[Captured]:
    """The same prompt in chunks of seven tokens on the cache."""
    return [_traced(model, tokens, chunk_tokens=CHUNK_TOKENS, max_new_tokens=1)]


def decode(model: HuggingFaceModel, tokens: list[int]) -> list[Captured]:
    """A shorter prompt, and the model's own answer token by token on the cache."""
    return [_traced(model, tokens[: NUM_TOKENS - NUM_DECODED + 1], chunk_tokens=2048, max_new_tokens=NUM_DECODED)]


def padded(model: HuggingFaceModel, tokens: list[int]) -> list[Captured]:
    """A batch of two prompts, the second shorter by five tokens and padded on the left."""
    pad, n = 5, len(tokens)
    inputs = padded_batch(model, tokens, pad)
    ranges = [(0, n), (pad, n)]
    scans: dict[tuple[int, int], Scan] = {}
    states: dict[tuple[int, int], Tensor] = {}

    def take(sample: int, call: Call) -> None:
        start, stop = ranges[sample]
        scan = scans.setdefault((sample, call.layer), Scan(STATISTICS, spans=spans(stop - start)))
        ids = inputs["input_ids"][sample, start + call.key_start : start + call.key_start + call.num_keys]
        scan.update(dataclasses.replace(call, tokens=ids))

    def take_state(sample: int, recurrence: Recurrence) -> None:
        (last,) = recurrence.states([recurrence.num_tokens])
        states[sample, recurrence.layer] = last

    on_call = take if model.attention_layers else None
    with torch.no_grad(), model.calls(on_call, None, take_state if model.recurrent_layers else None):
        model.hf(**inputs)
    found = []
    for sample, (start, stop) in enumerate(ranges):
        layers = {
            layer: {name: result.values.numpy() for name, result in scan.finish().items()}
            for (of, layer), scan in scans.items()
            if of == sample
        }
        for (of, layer), each in states.items():
            if of == sample:
                layers.setdefault(layer, {}).update(recurrent.of_states([each], each.shape[0], "last"))
        own = inputs["input_ids"][sample, start:stop].tolist()
        found.append(Captured(own, stop - start - 1, layers, None, inputs, (start, stop), sample))
    return found


WAYS: Final[dict[str, Callable[[HuggingFaceModel, list[int]], list[Captured]]]] = {
    "prefill": prefill,
    "chunks": chunks,
    "decode": decode,
    "padded": padded,
}
"""The ways by the names that the table calls them."""


def padded_batch(model: HuggingFaceModel, tokens: list[int], pad: int) -> dict[str, Tensor]:
    """Return the arguments of a batch whose second sample lacks the first `pad` tokens."""
    ids = torch.tensor([tokens, [0] * pad + tokens[pad:]])
    mask = torch.ones_like(ids)
    mask[1, :pad] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.hf.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return inputs


def watched(model: HuggingFaceModel, tokens: list[int]) -> tuple[Features, bool]:
    """Return what its calls are like in a plain forward, and whether watching left the logits as they were."""
    ids, features = torch.tensor([tokens]), Features()
    with torch.no_grad():
        before = model.hf(input_ids=ids).logits
        with model.calls(lambda _, call: features.see(call)):
            during = model.hf(input_ids=ids).logits
    return features, _same(before, during, model)


def _same(before: Tensor, during: Tensor, model: HuggingFaceModel) -> bool:
    """Whether watching changed nothing: not a bit, or where a bridge's pattern is not made, rounding."""
    if model.backend == "transformer_lens":
        return torch.allclose(before, during, atol=1e-5, rtol=1e-4)
    return torch.equal(before, during)


def _traced(model: HuggingFaceModel, tokens: list[int], *, chunk_tokens: int, max_new_tokens: int) -> Captured:
    sample = Sample("conformance", tuple(tokens), spans(len(tokens)))
    of_attention = STATISTICS if model.attention_layers else []
    of_states = recurrent.STATISTICS if model.recurrent_layers else []
    traced = trace(
        model,
        sample,
        statistics=[*of_attention, *of_states, *OF_TOKENS],
        chunk_tokens=chunk_tokens,
        max_new_tokens=max_new_tokens,
        pool_tokens=None,
        scan="blocked",
    )
    answered = () if traced.outcome is None else traced.outcome.response_tokens
    whole = [*tokens, *answered[:-1]]
    loss = traced["loss"].values if "loss" in traced.dataset else np.full(len(whole), np.nan)
    return Captured(whole, len(tokens) - 1, _layers(traced, model), loss)


def _layers(traced: Trace, model: HuggingFaceModel) -> dict[int, dict[str, Array]]:
    heads = {"head": model.num_heads, "kv_head": model.num_kv_heads}
    if "num_state_heads" in traced.dataset:
        heads["state_head"] = _by_layer(traced, "num_state_heads", model.num_layers)
    found: dict[int, dict[str, Array]] = {}
    for name in map(str, traced.dataset.data_vars):
        array = traced[name]
        if "layer" not in array.dims:
            continue
        for index, layer in enumerate(array.coords["layer"].values.tolist()):
            own = array.isel(layer=index)
            # A trace pads layers to the model's largest number of heads.
            if name == "num_state_heads":
                continue
            sizes = {dim: slice(count[layer]) for dim, count in heads.items() if dim in own.dims}
            own = own.isel(sizes)
            of_attention = not name.startswith(("residual_", "state_", "num_state"))
            if own.size and bool(own.notnull().any()) and (layer in model.attention_layers or not of_attention):
                found.setdefault(layer, {})[name] = own.values
    return found


def _by_layer(traced: Trace, name: str, num_layers: int) -> list[int]:
    array = traced[name]
    own = dict(zip(array.coords["layer"].values.tolist(), array.values.tolist(), strict=True))
    return [int(own.get(layer, 0)) for layer in range(num_layers)]
