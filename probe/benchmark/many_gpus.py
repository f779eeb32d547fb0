"""What one prompt over several GPUs would take, on paper: `python -m probe.benchmark.many_gpus`.

Formulas, not measurements; each throughput and bandwidth is assumed, and a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS = (1_000_000, 10_000_000)
"""Tokens of the prompts of the table."""


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder with grouped heads; the defaults are an 8B Llama's in bfloat16."""

    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    channels: int = 128
    hidden: int = 4096
    intermediate: int = 14_336
    parameters: float = 8.0e9
    bytes_each: int = 2

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights, of which each rank has a copy."""
        return self.parameters * self.bytes_each

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers: 2 · L · H_kv · d · b."""
        return 2 * self.layers * self.kv_heads * self.channels * self.bytes_each

    def linear_flops(self, tokens: int) -> float:
        """Operations of all that is not attention: 2 for each weight and token."""
        return 2.0 * self.parameters * tokens

    def product_flops(self, tokens: int) -> float:
        """Operations of one causal product of all queries with all keys, or of probabilities with values: L H d n²."""
        return float(self.layers * self.heads * self.channels) * tokens**2

    def working_bytes_per_token(self) -> int:
        """Bytes that a layer's forward holds for a token of the rank's own at once, roughly.

        Two of the MLP's widths and their product, four of the hidden width, and three of the heads' outputs in float64,
        which the ring rescales.
        """
        activations = (3 * self.intermediate + 4 * self.hidden) * self.bytes_each
        return activations + 3 * 8 * self.heads * self.channels


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPUs; none of it was measured here."""

    memory: float = 72e9
    """Bytes of an 80 GB GPU that may be used."""
    flops: float = 400e12
    """Operations a second that a fused bfloat16 kernel is assumed to reach on an H100."""
    float32_flops: float = 40e12
    """The same of products in float32, in which the ring attends today."""
    fast_link: float = 450e9
    """Bytes a second in one direction between GPUs of one machine (NVLink of an H100)."""
    slow_link: float = 50e9
    """Bytes a second between machines (InfiniBand of 400 Gbit/s, one for each GPU)."""


def gpus(model: Model, machine: Machine, tokens: int) -> int:
    """Return how many GPUs hold weights, cache, one layer's work and the sums by key; in eights.

    While a layer is read every rank has what its queries gave to each key of the whole prompt, 4 bytes a head and key;
    then each key's sum is its own rank's. Raises ValueError where that and the weights leave no room, however many
    there are.
    """
    fixed = model.weight_bytes + sums_bytes(model, tokens)
    room = machine.memory - fixed
    if room <= 0:
        raise ValueError(f"weights and sums by key are {fixed / 1e9:.0f} GB on every GPU of {machine.memory / 1e9:.0f}")
    by_key = 4 * model.layers * model.heads
    shared = tokens * (model.cache_bytes_per_token + model.working_bytes_per_token() + by_key)
    return 8 * math.ceil(shared / room / 8)


def sums_bytes(model: Model, tokens: int) -> int:
    """Return what one statistic's sums by key take on every rank while a layer is read: 4 · H · n."""
    return 4 * model.heads * tokens


def imbalance(ranks: int) -> float:
    """Return how much longer the last rank attends than the mean, with stretches of equal length: 2 − 1/N."""
    return 2 - 1 / ranks


def bytes_over_link(model: Model, tokens: int, ranks: int, *, keys: int = 2, values: int = 2) -> float:
    """Return what the busiest link carries in one layer, when keys go around so many times, and values.

    With a model: once for the output and once for the statistics, keys and values. A scan by itself: keys twice, values
    once. The link to the last rank carries every stretch but the last one's.
    """
    once = model.kv_heads * model.channels * model.bytes_each * tokens * (ranks - 1) / ranks
    return (keys + values) * once


def seconds(model: Model, tokens: int, ranks: int, flops: float, products: int) -> float:
    """Return how long the last rank takes for as many products of all queries and keys."""
    return products * model.product_flops(tokens) * imbalance(ranks) / ranks / flops


def trace_bytes(model: Model, tokens: int, *, per_query: int = 7, pool: int = 64) -> float:
    """Return a trace's bytes at pooled defaults, before compression.

    Seven arrays of each head and query, six of them with a maximum beside the mean, and of keys one of each head and
    one of each key-value head with both; the sums of the first 64 queries by key, which are not pooled and nearly all
    zero, are left out.
    """
    values = (2 * (per_query - 1) + 1 + 2) * model.heads + 2 * model.kv_heads
    return 4.0 * values * model.layers * tokens / pool


def rows(model: Model, machine: Machine, tokens: int, ranks: int) -> Iterator[tuple[str, str]]:
    """Yield what is needed, and how much, for one length."""
    link = bytes_over_link(model, tokens, ranks)
    yield "keys and values, all layers", _bytes(model.cache_bytes_per_token * tokens)
    yield "weights, on every GPU", _bytes(model.weight_bytes)
    yield "sums by key of a layer, on every GPU", _bytes(sums_bytes(model, tokens))
    yield "GPUs", f"{ranks}"
    yield "operations, all but attention", f"{model.linear_flops(tokens):.1e}"
    yield "operations, attention (2 products)", f"{2 * model.product_flops(tokens):.1e}"
    yield "operations, statistics (1 product)", f"{model.product_flops(tokens):.1e}"
    yield "last rank's share over the mean", f"{imbalance(ranks):.2f}"
    yield "time of the 3 products, fused bfloat16", _time(seconds(model, tokens, ranks, machine.flops, 3))
    yield "time of the 3 products, float32 as now", _time(seconds(model, tokens, ranks, machine.float32_flops, 3))
    yield "busiest link, each layer", _bytes(link)
    yield "its time over NVLink, all layers", _time(model.layers * link / machine.fast_link)
    yield "its time over InfiniBand, all layers", _time(model.layers * link / machine.slow_link)
    yield "trace, pooled by 64, before compression", _bytes(trace_bytes(model, tokens))


def table(model: Model | None = None, machine: Machine | None = None) -> str:
    """Return the table of docs/many-gpus.md."""
    model, machine = model or Model(), machine or Machine()
    columns = []
    for tokens in NUMBERS:
        columns.append(list(rows(model, machine, tokens, gpus(model, machine, tokens))))
    lines = [f"| | {' | '.join(f'{tokens:,} tokens' for tokens in NUMBERS)} |", "| --- " * (1 + len(NUMBERS)) + "|"]
    lines += [f"| {each[0][0]} | {' | '.join(value for _, value in each)} |" for each in zip(*columns, strict=True)]
    return "\n".join(lines)


def _bytes(number: float) -> str:
    return f"{number / 1e12:.2f} TB" if number >= 1e12 else f"{number / 1e9:.1f} GB"


def _time(number: float) -> str:
    if number >= 7200:
        return f"{number / 3600:.1f} h"
    return f"{number / 60:.1f} min" if number >= 120 else f"{number:.1f} s"


if __name__ == "__main__":
    print(table())
