"""Which tokens of a prompt's cache a policy keeps, and how much of the attention that comes after goes to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.query_means import num_queries
from probe.selection import LeftOut, holding, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Kept = NDArray[np.bool_]

NUM_SINK: Final = 4
"""First keys that count as sinks."""
POLICIES: Final = ("StreamingLLM", "SnapKV", "H2O", "TOVA", "key norm", "random")
"""The policies, as tables name them; the last is the control."""
AWARE: Final = {
    "StreamingLLM": "no", "SnapKV": "yes", "H2O": "in part", "TOVA": "yes", "key norm": "no", "random": "no",
}  # fmt: skip
"""Whether a policy has seen the question when it chooses, where the prompt ends with it."""
_LAST = "window_mass_window_1"
_DRAWS: Final = 4


@dataclass(frozen=True)
class CacheReading:
    """One prompt's numbers under every policy and budget, `[policy budget layer head]`, and `[policy budget]`."""

    prompt: str
    unit: str
    retained: Floats
    """Attention of the rows after row 0 that does not go to evicted keys: a lower bound."""
    without_sinks: Floats
    """The same of the attention that does not go to the first four keys."""
    needle_attention: Floats
    """Of those rows' attention on the needle, over all heads, the share on tokens that are kept; NaN where it has none,
    or there is no needle; `[policy budget]`."""
    needle_by_head: Floats
    """The same of each head, `[policy budget layer head]`."""
    needle_tokens: Floats
    """Share of the needle's tokens that are kept, mean over layers and key-value heads, `[policy budget]`."""
    needle_whole: Floats
    """Share of the layers' key-value heads that keep all of the needle's tokens, `[policy budget]`."""
    needle_in_part: Floats
    """Share of those that keep any of them, `[policy budget]`."""
    unseen: float
    """Attention below the ranks that were captured, mean over rows and heads: how far the bound may be off."""


def cache_readings(
    traces: Sequence[Trace], budgets: Sequence[float], window: int, seed: int, left_out: LeftOut
) -> Iterator[CacheReading]:
    """Yield what each prompt says; those of which nothing can be said are left out and counted.

    Raises MissingStatistic where no trace holds what is needed.
    """
    votes = "window_mass" if window == 32 else f"window_mass_window_{window}"
    usable = []
    for trace in traces:
        if trace.outcome is not None and trace.outcome.failed:
            left_out.add("the unit failed")
        elif not reads_the_text(trace):
            left_out.add('the text stands in the encoder: its trace to read is trace.part("encoder")')
        elif round(min(budgets) * len(trace.sample)) <= max(NUM_SINK, window):
            left_out.add(f"the smallest budget keeps no more than the last {window} tokens")
        elif trace.outcome is None or len(trace.outcome.response_tokens) < 2:
            left_out.add("an answer of one token leaves no query after the cache was cut")
        else:
            usable.append(trace)
    for name in (votes, _LAST, "received_mass", "key_norm", ranks_name(usable)):
        usable = holding(usable, name, left_out)
    for trace in usable:
        reading = _reading(trace, budgets, window, votes, seed)
        if reading is None:
            left_out.add("attention was not finite")
        else:
            yield reading


def ranks_name(traces: Sequence[Trace]) -> str:
    """Return the name of the captured `top_keys` with most ranks; the statistic's own where there is none."""
    there = {str(name) for trace in traces[:1] for name in trace.dataset.data_vars}
    names = [name for name in there if name.startswith("top_keys") and f"{name}_probability" in there]
    return max(names, key=lambda name: (traces[0].dataset[name].sizes["rank"], name)) if names else "top_keys"


def policy_scores(
    policy: str,
    votes: Floats,
    received: Floats,
    last: Floats,
    norm: Floats,
    window: int,
    generator: np.random.Generator,
) -> Floats:
    """Return what a policy sorts keys by, `[layer kv_head key]`, the largest kept.

    Of that shape each: what keys receive from the last queries, from all, from the last one alone, and their norms.
    """
    if policy == "SnapKV":
        # The mean over five neighbours, which leaves whole pieces of text rather than single tokens; as in the authors'
        # code, nothing of the last tokens, which stay anyway, is in it.
        padded = np.pad(votes[..., : votes.shape[-1] - window], ((0, 0), (0, 0), (2, 2 + window)))
        return np.asarray(sum(padded[..., at : at + votes.shape[-1]] for at in range(5)) / 5, np.float64)
    if policy == "H2O":
        return received
    if policy == "TOVA":
        # The same tokens for all heads of a layer.
        return np.broadcast_to(last.mean(axis=1, keepdims=True), last.shape)
    if policy == "key norm":
        return -norm
    return generator.random(norm.shape)


def kept_keys(policy: str, score: Floats, size: int, window: int) -> Kept:
    """Return which keys stay, `[layer kv_head key]`: `size` of them in every head."""
    num = score.shape[-1]
    kept = np.zeros(score.shape, bool)
    if policy == "StreamingLLM":
        kept[..., :NUM_SINK] = True
        kept[..., num - (size - NUM_SINK) :] = True
        return kept
    recent = {"SnapKV": window, "H2O": size // 2}.get(policy, 0)
    kept[..., num - recent :] = True
    rest = score[..., : num - recent]
    # Stable, so that ties go to the earlier key.
    best = np.argsort(-rest, axis=-1, kind="stable")[..., : size - recent]
    np.put_along_axis(kept, best, True, axis=-1)
    return kept


def _reading(trace: Trace, budgets: Sequence[float], window: int, votes_name: str, seed: int) -> CacheReading | None:
    num, name = len(trace.sample), ranks_name([trace])
    keys = trace[name].transpose("layer", "head", "row", "rank").to_numpy()
    mass = trace[f"{name}_probability"].transpose("layer", "head", "row", "rank").to_numpy().astype(np.float64)
    votes, received, last = (_by_key(trace, each, "head", num) for each in (votes_name, "received_mass", _LAST))
    norm = _by_key(trace, "key_norm", "kv_head", num)
    if not all(np.isfinite(each).all() for each in (mass, votes, received, last, norm)):
        return None
    keys, mass = keys[:, :, 1:], mass[:, :, 1:]
    inside = (keys >= 0) & (keys < num)
    index = np.where(inside, keys, 0)
    # The sums hold what the answer's queries gave, too, which no policy can have seen.
    later = np.zeros_like(received)
    layer, head = np.indices(keys.shape)[:2]
    np.add.at(later, (layer, head, index), np.where(inside, mass, 0.0))
    group = votes.shape[1] // norm.shape[1]
    past = np.maximum(received - later, 0).reshape(len(votes), -1, group, num).mean(axis=2)
    votes, last = (each.reshape(len(votes), -1, group, num).mean(axis=2) for each in (votes, last))
    needle = np.zeros(num, bool)
    for span in trace.sample.spans:
        if span.name == "needle":
            needle[span.start : span.stop] = True
    on_needle = np.where(inside & needle[index], mass, 0.0)
    sinks = np.where(inside & (index < NUM_SINK), mass, 0.0).sum(axis=-1)
    unseen = np.clip(1 - mass.sum(axis=-1), 0.0, 1.0)
    on_needle_by_head = on_needle.sum(axis=(2, 3))
    whole, by_head = (len(POLICIES), len(budgets)), (len(POLICIES), len(budgets), *mass.shape[:2])
    retained, apart, needle_by_head = np.zeros(by_head), np.zeros(by_head), np.full(by_head, np.nan)
    attention, tokens, every, any_token = (np.full(whole, np.nan) for _ in range(4))
    for p, policy in enumerate(POLICIES):
        for b, budget in enumerate(budgets):
            size = round(budget * num)
            parts: list[tuple[Floats, Floats, Floats, Kept]] = []
            for draw in range(_DRAWS if policy == "random" else 1):
                generator = np.random.default_rng([seed, b, draw, num])
                kept = kept_keys(
                    policy, policy_scores(policy, votes, past, last, norm, window, generator), size, window
                )
                there = np.repeat(kept, group, axis=1)[layer, head, index] | ~inside
                lost = np.where(there, 0.0, mass)
                lost_apart = np.where(index < NUM_SINK, 0.0, lost).sum(axis=-1)
                parts.append(
                    (
                        (1 - lost.sum(axis=-1) - unseen).mean(axis=-1),
                        (1 - np.minimum(1, (lost_apart + unseen) / np.maximum(1 - sinks, 1e-9))).mean(axis=-1),
                        (on_needle * there).sum(axis=(2, 3)),
                        kept[..., needle],
                    )
                )
            retained[p, b], apart[p, b] = (np.mean([part[i] for part in parts], axis=0) for i in (0, 1))
            stays = np.mean([part[2] for part in parts], axis=0)
            if on_needle_by_head.sum():
                attention[p, b] = stays.sum() / on_needle_by_head.sum()
            np.divide(stays, on_needle_by_head, out=needle_by_head[p, b], where=on_needle_by_head > 0)
            if needle.any():
                found = [part[3] for part in parts]
                tokens[p, b], every[p, b] = np.mean(found), np.mean([each.all(axis=-1) for each in found])
                any_token[p, b] = np.mean([each.any(axis=-1) for each in found])
    return CacheReading(
        trace.sample.name, trace.unit, np.clip(retained, 0, 1), apart, attention, needle_by_head, tokens, every,
        any_token, float(unseen.mean()),
    )  # fmt: skip


def _by_key(trace: Trace, name: str, heads: str, num: int) -> Floats:
    """Return a statistic `[layer head key]` of the prompt's keys; a pooled block's for each of its positions."""
    array = trace[name]
    axis = "key_block" if "key_block" in array.dims else "key"
    values = array.transpose("layer", heads, axis).to_numpy().astype(np.float64)
    if axis == "key_block":
        start = array[axis].to_numpy()
        stop = np.append(start[1:], num_queries(trace))
        values = np.repeat(values, np.maximum(stop - start, 0), axis=-1)
    return values[..., :num]
