"""What heads behind removed ones write for the answer, before and after: what `self_repair` reads from traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.selection import LeftOut, interventions_of

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Heads = tuple[tuple[int, int], ...]

WRITES: Final = "span_logit_all"
"""The array that holds what each head writes from all of its keys, `[layer head row]`."""
_SAME: Final = 1e-3
"""By how much heads before the removed ones may differ, relative to the largest, once the norm's scale is taken out:
rounding of half precision."""


@dataclass(frozen=True)
class RepairReading:
    """What was written for the answer's first token on every prompt; writes `[prompt head]` over the same heads."""

    prompts: tuple[str, ...]
    removed: Heads
    behind: Heads
    """Heads in layers behind the first removed one that are not removed themselves."""
    before: Floats
    """What the heads behind write with nothing removed, in logits."""
    after: Floats
    """What they write with the found heads removed, at the norm's scale of the untouched model."""
    others: Floats
    """The same with others removed, `[prompt head draw]`; NaN where that draw removes the head or lacks the prompt."""
    wrote: Floats
    """What the removed heads write with nothing removed, summed over them, `[prompt]`."""
    left: Floats
    """What all heads that were left write with the found ones removed, at the norm's scale of the untouched model,
    summed over them, `[prompt]`."""
    norm: Floats
    """By what factor the norms' scale grew when the heads were removed, `[prompt]`."""
    norm_of_others: Floats
    """The same when others were removed, `[prompt draw]`; NaN where a draw lacks the prompt."""
    draws: tuple[int, ...]
    units: tuple[str, ...]

    @property
    def repair(self) -> Floats:
        """How much more the heads behind write than before, summed over them, `[prompt]`."""
        return np.asarray((self.after - self.before).sum(axis=1), np.float64)

    @property
    def by_norm(self) -> Floats:
        """How much more the heads that were left write because the norms' scale grew, `[prompt]`."""
        return (self.norm - 1) * self.left

    @property
    def over_others(self) -> Floats:
        """How much more that is than when others are removed, over the heads that both leave, `[prompt draw]`."""
        each = self.after[:, :, None] - self.others
        there = np.isfinite(self.others).any(axis=1)
        return np.where(there, np.nansum(each, axis=1), np.nan)

    @property
    def others_repair(self) -> Floats:
        """How much more the heads behind write when others are removed, `[prompt draw]`."""
        there = np.isfinite(self.others).any(axis=1)
        return np.where(there, np.nansum(self.others - self.before[:, :, None], axis=1), np.nan)


def removed_heads(trace: Trace) -> Heads:
    """Return the heads that a trace's condition removes; empty where it does not say."""
    found: list[Any] = []
    for _, fields in interventions_of(trace.facts):
        found += (fields or {}).get("heads") or ()
    return tuple(sorted({(int(layer), int(head)) for layer, head in found}))


def read_repair(
    treated: Sequence[Trace], controls: Sequence[Trace], untouched: Sequence[Trace], left_out: LeftOut
) -> RepairReading | None:
    """Return what all three conditions wrote on the prompts that they share, None where there are none."""
    removed = removed_heads(treated[0]) if treated else ()
    before = {trace.sample.name: trace for trace in untouched}
    drawn: dict[str, dict[int, Trace]] = {}
    for trace in controls:
        drawn.setdefault(trace.sample.name, {})[int(trace.facts.get("draw") or 0)] = trace
    if not removed:
        left_out.add("a treatment that does not say which heads it removes", len(treated))
        return None
    first = min(layer for layer, _ in removed)
    draws = tuple(sorted({draw for each in drawn.values() for draw in each}))
    kept: list[tuple[Trace, ...]] = []
    rows: list[tuple[Floats, Floats, Floats, Floats, float, float, float]] = []
    behind: Heads | None = None
    for trace in treated:
        base = before.get(trace.sample.name)
        if base is None or base.sample.tokens != trace.sample.tokens:
            left_out.add("a prompt that was not read with nothing removed")
            continue
        own, after = _first_row(base), _first_row(trace)
        norm = _norm(own, after, first, removed)
        if own is None or after is None or norm is None:
            left_out.add("a prompt of which is not known what the heads before the removed ones write")
            continue
        heads = _behind(own, first, removed)
        if behind is not None and heads != behind:
            left_out.add("a prompt read with another set of heads")
            continue
        behind = heads
        written = np.array([own[head] for head in heads])
        others, norms = np.full((len(heads), len(draws)), np.nan), np.full(len(draws), np.nan)
        used = [base, trace]
        for number, draw in enumerate(draws):
            other = drawn.get(trace.sample.name, {}).get(draw)
            if other is None:
                continue
            gone, seen = removed_heads(other), _first_row(other)
            scale = _norm(own, seen, min((layer for layer, _ in gone), default=first), gone)
            if seen is None or scale is None:
                left_out.add("a control of which is not known what the heads before the removed ones write")
                continue
            norms[number] = scale
            others[:, number] = [np.nan if head in gone else seen[head] / scale for head in heads]
            used.append(other)
        wrote = float(sum(own[head] for head in removed if head in own))
        left = sum(value for head, value in after.items() if head not in removed) / norm
        rows.append((written, np.array([after[head] / norm for head in heads]), others, norms, wrote, left, norm))
        kept.append(tuple(used))
    if not rows:
        return None
    order = sorted(range(len(rows)), key=lambda i: kept[i][0].sample.name)
    parts = [rows[i] for i in order]
    return RepairReading(
        prompts=tuple(kept[i][0].sample.name for i in order),
        removed=removed,
        behind=behind or (),
        before=np.array([each[0] for each in parts]),
        after=np.array([each[1] for each in parts]),
        others=np.array([each[2] for each in parts]),
        norm_of_others=np.array([each[3] for each in parts]),
        wrote=np.array([each[4] for each in parts]),
        left=np.array([each[5] for each in parts]),
        norm=np.array([each[6] for each in parts]),
        draws=draws,
        units=tuple(trace.unit for i in order for trace in kept[i]),
    )


def _first_row(trace: Trace) -> Mapping[tuple[int, int], float] | None:
    """Return what each head writes at the prompt's last token, where the text is the same in every condition."""
    array = trace[WRITES].transpose("layer", "head", "row")
    if not array.sizes["row"]:
        return None
    layers = array["layer"].to_numpy().tolist() if "layer" in array.coords else list(range(array.sizes["layer"]))
    values = array.to_numpy()[:, :, 0].astype(np.float64)
    return {
        (int(layer), head): float(values[i, head])
        for i, layer in enumerate(layers)
        for head in range(values.shape[1])
        if np.isfinite(values[i, head])
    }


def _behind(writes: Mapping[tuple[int, int], float], first: int, removed: Heads) -> Heads:
    return tuple(sorted(head for head in writes if head[0] > first and head not in removed))


def _norm(
    before: Mapping[tuple[int, int], float] | None,
    after: Mapping[tuple[int, int], float] | None,
    first: int,
    removed: Heads,
) -> float | None:
    """Return by what factor the norms' scale grew, from heads that the removal cannot have reached.

    Those in layers before the first removed one put out what they did, so that what they write changes by the scale
    alone; where there is no such layer, the others of its own layer do. None where they do not agree on one factor.
    """
    if before is None or after is None:
        return None
    untouched = [head for head in before if head[0] < first] or [
        head for head in before if head[0] == first and head not in removed
    ]
    own = np.array([before[head] for head in untouched])
    now = np.array([after.get(head, np.nan) for head in untouched])
    size = float(own @ own)
    if not size > 0 or not np.isfinite(now).all():
        return None
    factor = float(own @ now) / size
    # Rounding is as large as the largest of them.
    if not factor > 0 or float(np.abs(now - factor * own).max()) > _SAME * factor * float(np.abs(own).max()) + 1e-6:
        return None
    return factor
