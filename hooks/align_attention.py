"""The temperature at which attention over long texts is as sharp as it was over short ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from probe.errors import UsageError
from probe.hooks.attention.calls_by_phase import from_query
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.mean_head_output import run
from probe.hooks.temperature import temperature
from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.walk import Walk
from probe.sample import Sample

Sharpness = Literal["max_probability", "entropy"]
Prompts = Sequence[Sample | Sequence[int]]

_FURTHEST = 8.0
"""τ is looked for between this and its inverse."""
_CLOSE = 1e-4
"""How exactly ln τ is found."""


def align_attention(
    model: Any,
    samples_short: Prompts,
    samples_long: Prompts,
    *,
    measure: Sharpness = "max_probability",
    last_queries: int = 32,
    layers: Sequence[int] | None = None,
) -> temperature:
    """Return the `temperature` that makes attention over the long samples as sharp as it is over the short ones.

    Chi et al. (2023, arXiv 2311.00684) align attention at a longer length with that at the training length by a
    temperature, matched on the largest probability of a row or on its entropy, in T5's encoder; how they find it is
    this toolkit's own: bisection of ln τ between 1/8 and 8, to 1e-4, one τ for all `layers` (all of the model's where
    None). What is matched is the mean over layers, heads, the `last_queries` queries of each sample, and samples, since
    the end of a text is where it has its length. Samples are samples or rows of token ids; they are read whole, without
    a cache, about fifteen times each. Interventions that are on already stay on. Two sets of like sharpness give τ = 1.

    Raises `UsageError` where a sample is shorter than `last_queries`, or no τ in the range matches.
    """
    if measure not in get_args(Sharpness):
        raise UsageError(f"align_attention: measure is {measure!r}; expected {', '.join(get_args(Sharpness))}")
    if last_queries < 1:
        raise UsageError(f"align_attention: last_queries is at least 1, not {last_queries}")
    of_name = {"samples_short": _rows(samples_short), "samples_long": _rows(samples_long)}
    for name, rows in of_name.items():
        if not rows or min(map(len, rows)) < last_queries:
            raise UsageError(
                f"align_attention: {name} needs samples of at least last_queries ({last_queries}) tokens; "
                f"it has {[len(row) for row in rows]}"
            )
    hf = transformers_model_of(model)

    def sharpness(rows: list[list[int]], tau: float) -> float:
        """The measure, turned so that it grows with τ."""
        reader = _sharpness(measure, last_queries, layers)
        with temperature(tau, layers=layers)(hf), attached(hf, reader), torch.no_grad():
            for row in rows:
                reader.num_tokens = len(row)
                run(hf, [row])
        mean = reader.total / reader.count
        return mean if measure == "entropy" else -mean

    wanted, now = sharpness(of_name["samples_short"], 1.0), sharpness(of_name["samples_long"], 1.0)
    if math.isclose(wanted, now, rel_tol=1e-6, abs_tol=1e-9):
        return temperature(1.0, layers=layers)
    low, high = (1 / _FURTHEST, 1.0) if now > wanted else (1.0, _FURTHEST)
    furthest = sharpness(of_name["samples_long"], low if now > wanted else high)
    if (furthest > wanted) == (now > wanted):
        raise UsageError(
            f"align_attention: samples_long do not come to the {measure} of samples_short ({abs(wanted):.4g}; "
            f"{abs(now):.4g} as they are) at any tau from {low:g} to {high:g}"
        )
    while math.log(high / low) > _CLOSE:
        middle = math.sqrt(low * high)
        if sharpness(of_name["samples_long"], middle) > wanted:
            high = middle
        else:
            low = middle
    return temperature(math.sqrt(low * high), layers=layers)


def _rows(samples: Prompts) -> list[list[int]]:
    return [list(each.tokens if isinstance(each, Sample) else each) for each in samples]


class _sharpness(tap):
    """Sums the measure over the last queries of what is read."""

    wants_calls = True

    def __init__(self, measure: Sharpness, last_queries: int, layers: Sequence[int] | None) -> None:
        self.measure, self.last_queries, self.layers = measure, last_queries, layers
        self.num_tokens = self.count = 0
        self.total = 0.0

    def call(self, sample: int, call: Call) -> None:
        first = self.num_tokens - self.last_queries - call.query_start
        if first >= call.num_queries or (self.layers is not None and call.layer not in self.layers):
            return
        call = from_query(call, max(first, 0))
        with exact(call.query.device):
            for _, blocks in Walk().over(call):
                rows: torch.Tensor | None = None
                for block in blocks:
                    if self.measure == "entropy":
                        found = -(block.probability * block.log_probability).sum(-1)
                        rows = found if rows is None else rows + found
                    else:
                        found = block.probability.amax(-1)
                        rows = found if rows is None else torch.maximum(rows, found)
                assert rows is not None
                self.total += float(rows.double().sum())
                self.count += rows.numel()
