"""How much attention the gold passage gets while right and wrong answers are produced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probe.finding import Measurement
from probe.intervals import by_cluster, cluster_bootstrap
from probe.selection import fact, length, reads_the_text

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.storage.trace_store import Trace


@dataclass(frozen=True)
class GoldLooks:
    """What the heads that look at the gold in right answers do in wrong ones."""

    clause: str = ""
    """What it adds to a claim; empty where nothing can be said."""
    heads: tuple[tuple[int, int], ...] = ()
    """The heads, as (layer, head)."""
    details: tuple[Measurement, ...] = ()
    """Their mean attention to the gold in right and in wrong answers."""
    notes: tuple[str, ...] = ()
    """How they were chosen, or why there are none."""


@dataclass(frozen=True)
class _Seen:
    prompt: str
    length: int
    right: bool
    half: str | None
    mass: NDArray[np.float64]
    """Mean attention to the gold over the answer's steps, `[layer head]`."""


def follow_gold(cases: Sequence[tuple[Trace, Outcome]], span: str, threshold: float, seed: int) -> GoldLooks:
    """Return where the heads look in wrong answers that give `span` more than `threshold` in right ones.

    Chosen on the half that finds and followed on the other, where samples are halved. Right and wrong answers are
    compared over the lengths at which both occur, with each length's weight among the wrong ones, or length alone would
    tell them apart. `do not look`: the attention
    in wrong answers lies below half of that in right ones with 95 % certainty; `look all the same`: above half of it,
    with the same certainty (this toolkit's own).
    """
    seen = [each for trace, outcome in cases if (each := _seen(trace, outcome, span)) is not None]
    if not seen:
        return GoldLooks(notes=(f"span_mass was not captured, or no span `{span}`: where it looks is not told.",))
    finding = [each for each in seen if each.half == "find" and each.right]
    chosen = finding or [each for each in seen if each.right]
    if not chosen:
        return GoldLooks(notes=("No answer is right, so no head can be said to look at the gold where it is.",))
    mean = by_cluster([each.mass for each in chosen], [each.prompt for each in chosen]).mean(axis=0)
    heads = tuple((int(layer), int(head)) for layer, head in np.argwhere(mean > threshold))
    if not heads:
        return GoldLooks(notes=(f"No head gives the gold more than {threshold:g} of its attention in right answers.",))
    rest = [each for each in seen if each.half == "test"]
    followed = rest if finding and rest else seen
    mixed = {at for at in {each.length for each in followed} if len({e.right for e in followed if e.length == at}) == 2}
    number = Counter((each.length, each.right) for each in followed)
    details, ends = [], {}
    for right in (True, False):
        here = [each for each in followed if each.right == right and each.length in mixed]
        if len(here) < 2:
            continue
        # Right answers are weighted so that each length counts as it does among the wrong ones.
        weight = np.array([number[each.length, False] / number[each.length, right] for each in here])
        values = np.array([np.mean([each.mass[head] for head in heads]) for each in here]) * weight / weight.mean()
        bounds = None if right else (0.0, 1.0)
        interval = cluster_bootstrap(values, [each.prompt for each in here], bounds=bounds, seed=seed)
        if interval is not None:
            within = {"low": max(interval.low, 0.0), "high": min(interval.high, 1.0)}
            interval = interval.model_copy(update=within)
        value = float(values.mean())
        ends[right] = (value, interval)
        details.append(
            Measurement(
                name=f"attention of those heads to the gold, answer {'right' if right else 'wrong'}",
                value=value,
                unit="probability",
                interval=interval,
                n=len(here),
            )
        )
    named = ", ".join(str(head) for head in heads[:8]) + (" …" if len(heads) > 8 else "")
    halves = ", chosen on one half of the samples and followed on the other" if finding and rest else ""
    note = (
        f"Heads followed: (layer, head) {named}: those that give `{span}` more than {threshold:g} of their attention "
        f"in right answers{halves}; right and wrong are compared over lengths at which both occur, each length "
        "counted as often as answers are wrong there."
    )
    if len(ends) < 2:
        return GoldLooks(heads=heads, notes=(note, "Right and wrong answers do not occur at one length."))
    (usual, _), (value, interval) = ends[True], ends[False]
    words = "whether they look cannot be told"
    if interval is not None and interval.high < usual / 2:
        words = "they do not look"
    elif interval is not None and interval.low > usual / 2:
        words = "they look all the same"
    who = "the head that looks" if len(heads) == 1 else f"the {len(heads)} heads that look"
    clause = (
        f"; {who} at the gold {'gives' if len(heads) == 1 else 'give'} it {value:.2g} in wrong answers, {usual:.2g} "
    )
    return GoldLooks(f"{clause}in right ones: {words}", heads, tuple(details), (note,))


def _seen(trace: Trace, outcome: Outcome, span: str) -> _Seen | None:
    if "span_mass" not in trace or not reads_the_text(trace):
        return None
    array = trace["span_mass"]
    if span not in array["span"].to_numpy().tolist() or array.sizes["row"] == 0:
        return None
    steps = max(1, len(trace.sample.answer_tokens))
    rows = array.sel(span=span).isel(row=slice(0, steps)).transpose("layer", "head", "row").to_numpy()
    mass = rows.astype(np.float64)
    if not np.isfinite(mass).all():
        # A layer with fewer heads than another has no number for the rest: they look at nothing.
        mass = np.nan_to_num(mass, nan=0.0)
    half = fact(trace, "half")
    return _Seen(
        prompt=trace.sample.name,
        length=length(trace),
        right=bool(outcome.correct),
        half=None if half is None else str(half),
        mass=mass.mean(axis=-1),
    )
