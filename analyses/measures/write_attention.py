"""Where the head that reads a flip-flop's bit looks: in right and in wrong reads, and as the last write grows old."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from probe import chart
from probe.finding import Figure, Interval, Measurement
from probe.intervals import cluster_bootstrap, percentiles, resamples
from probe.selection import reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Head = tuple[int, int]
Looks = Mapping[Head, tuple[float, float]]
"""For each head (layer, head): its attention to the last write's bit, and to earlier writes."""
FEWEST_AGES: Final = 8
"""Fewest different ages of the last write from which a trend is told."""


@dataclass(frozen=True)
class WriteAttention:
    """What attention says of the reads."""

    clause: str = ""
    """What a claim adds; empty where there is nothing to say."""
    notes: tuple[str, ...] = ()
    details: tuple[Measurement, ...] = ()
    figures: tuple[Figure, ...] = ()


def looks_of(trace: Trace) -> Looks | None:
    """Return where the heads look in the row that reads; None where `span_mass` of the writes was not captured."""
    if "span_mass" not in trace or not reads_the_text(trace):
        return None
    array = trace["span_mass"]
    names = array["span"].to_numpy().tolist()
    if "needle_value" not in names or array.sizes["row"] == 0:
        return None
    row = array.isel(row=0).transpose("layer", "head", "span").to_numpy().astype(np.float64)
    last = row[..., names.index("needle_value")]
    earlier = [index for index, name in enumerate(names) if str(name).startswith("write_")]
    pairs = np.stack([last, row[..., earlier].sum(-1)], -1)
    return {
        (int(layer), head): (float(a), float(b))
        for layer, heads in zip(array["layer"].to_numpy(), pairs, strict=True)
        for head, (a, b) in enumerate(heads)
    }


def write_attention(reads: Sequence[tuple[str, object, int, bool, Looks]], seed: int) -> WriteAttention:
    """Return what the reading head's attention says of reads (prompt, language, age of the last write, wrong, looks).

    The head is the one that gives the last write most in right reads. All definitions are this toolkit's own.
    """
    prompts, ages, wrong = (
        [p for p, *_ in reads],
        np.array([a for _, _, a, *_ in reads], np.int64),
        np.array([w for *_, w, _ in reads], bool),
    )
    if int((~wrong).sum()) < 2:
        return WriteAttention(notes=("Too few right reads with attention captured to say where the model looks.",))
    heads = list(reads[0][-1])
    mass = np.array([[looks[head] for head in heads] for *_, looks in reads])
    reader = int(mass[~wrong][..., 0].mean(0).argmax())
    head, mass = heads[reader], mass[:, reader]
    languages = np.unique([str(language) for _, language, *_ in reads], return_inverse=True)[1]
    details = [
        *_by_outcome(mass, wrong, prompts, head, seed),
        *_trends(mass[~wrong], ages[~wrong], languages[~wrong], seed),
    ]
    figures = (
        _figure(mass[~wrong], ages[~wrong], [p for p, w in zip(prompts, wrong, strict=True) if not w], head, seed),
    )
    if int(wrong.sum()) < 2:
        few = "Too few wrong reads with attention captured to say where the model looks in them."
        return WriteAttention("", (few,), tuple(details), figures)
    usual, (last, earlier) = mass[~wrong, 0].mean(), mass[wrong].mean(0)
    if earlier > last and earlier > usual / 2:
        cause = "an earlier write is mistaken for it"
    elif max(last, earlier) < usual / 2:
        cause = "the write is lost"
    else:
        cause = "its attention does not tell why"
    clause = (
        f"; where they are, the head that reads gives the last write {last:.2g} of its attention instead of "
        f"{usual:.2g}, and earlier ones {earlier:.2g}: {cause}"
    )
    note = "The head was chosen by its attention in right reads; that it is the cause is not shown by looking."
    return WriteAttention(clause, (note,), tuple(details), figures)


def _by_outcome(
    mass: Floats, wrong: NDArray[np.bool_], prompts: Sequence[str], head: Head, seed: int
) -> Iterator[Measurement]:
    for name, some in (("right", ~wrong), ("wrong", wrong)):
        if int(some.sum()) < 2:
            continue
        here = [prompt for prompt, kept in zip(prompts, some, strict=True) if kept]
        for index, what in enumerate(("the last write", "earlier writes")):
            yield Measurement(
                name=f"attention to {what} in {name} reads, head {head}",
                value=float(mass[some, index].mean()),
                unit="probability",
                interval=cluster_bootstrap(mass[some, index], here, bounds=(0.0, 1.0), seed=seed),
                n=int(some.sum()),
            )


def _trends(mass: Floats, ages: NDArray[np.int64], languages: NDArray[np.int64], seed: int) -> Iterator[Measurement]:
    """Yield dilution and drift: least-squares slopes on log2 of the age within each language, reads resampled."""
    if len(np.unique(ages)) < FEWEST_AGES:
        return
    weights, doublings = resamples(len(ages), seed=seed), np.log2(ages)
    share = 100 * mass[:, 1] / np.maximum(mass.sum(-1), np.finfo(float).tiny)
    for name, values in (
        ("dilution: change of the attention to the last write for each doubling of its age", 100 * mass[:, 0]),
        ("drift: change of earlier writes' share in the attention to writes for each doubling of the age", share),
    ):
        low, high = percentiles(_slopes(doublings, values, languages, weights))
        yield Measurement(
            name=f"{name}, in right reads of one language (this toolkit's own)",
            value=float(_slopes(doublings, values, languages, np.ones((1, len(ages))))[0]),
            unit="percentage points",
            interval=Interval(low=float(low), high=float(high), method="bootstrap over reads"),
            n=len(ages),
        )


def _slopes(x: Floats, y: Floats, group: NDArray[np.int64], weights: NDArray[Any]) -> Floats:
    """Return the slope of each weighting `[draw read]`, every group having a level of its own."""
    above, below = np.zeros(len(weights)), np.zeros(len(weights))
    for each in np.unique(group):
        own = np.where(group == each, weights, 0)
        total = np.maximum(own.sum(-1), 1)
        mean_x, mean_y = own @ x / total, own @ y / total
        above += own @ (x * y) - total * mean_x * mean_y
        below += own @ (x * x) - total * mean_x**2
    return np.asarray(above / np.maximum(below, np.finfo(float).tiny), np.float64)


def _figure(mass: Floats, ages: NDArray[np.int64], prompts: Sequence[str], head: Head, seed: int) -> Figure:
    data: list[Any] = []
    for index, (name, color, symbol) in enumerate(
        (("the last write", chart.ACCENT, "circle"), ("earlier writes", chart.WARN, "square"))
    ):
        x, y, low, high = [], [], [], []
        for edge in (1 << k for k in range(int(ages.max()).bit_length())):
            here = (ages >= edge) & (ages < 2 * edge)
            if int(here.sum()) < 2:
                continue
            own = [prompt for prompt, kept in zip(prompts, here, strict=True) if kept]
            ends = cluster_bootstrap(mass[here, index], own, bounds=(0.0, 1.0), seed=seed)
            x.append(edge)
            y.append(float(mass[here, index].mean()))
            low.append(float("nan") if ends is None else ends.low)
            high.append(float("nan") if ends is None else ends.high)
        data.append(chart.line(name, x, y, low, high, color=color, symbol=symbol))
    return chart.figure(
        "attention_by_age",
        "Where the head that reads looks, by how long ago the bit was written",
        f"Attention of head {head}, by (layer, head), in right reads, mean of each class of ages with 95 % "
        "intervals over texts.",
        data,
        {
            "xaxis": chart.axis("pairs since the last write (beginning of the class)", type="log"),
            "yaxis": chart.share_axis("attention"),
        },
    )
