"""A benchmark as tables of words: the layer, its memory over the lengths, the model. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from probe.benchmark.cases import case_of
from probe.benchmark.growth import growths
from probe.benchmark.result import Bench, Job, Measurement, Section

NONE = "–"
"""Stands where there is no number."""
BUSY = 0.5
"""Cores that others may keep busy, and that must be left over, before a reader is warned."""


@dataclass(frozen=True)
class Table:
    """One table."""

    title: str
    """What it is of."""
    columns: tuple[str, ...]
    """Their headings."""
    words: int
    """Number of first columns that hold words; the others hold numbers."""
    rows: tuple[tuple[str, ...], ...]
    """One text for each column."""
    notes: tuple[str, ...]
    """Sentences under it."""


def tables(bench: Bench) -> list[Table]:
    """Return the tables of what was measured."""
    return [*_layer(bench), *_growth(bench), *_model(bench)]


def heading(bench: Bench) -> str:
    """Return one paragraph: what ran, on which machine, and how it was timed."""
    machine, plan = bench.machine, bench.plan
    on = machine.gpu if machine.gpu else machine.processor
    memory = machine.gpu_memory_bytes if machine.gpu else machine.memory_bytes
    cores = "" if machine.gpu else f", {_threads(plan.threads)} of {machine.cores} cores"
    size = "" if memory is None else f", {in_bytes(memory)} of memory"
    triton = f", Triton {machine.triton}" if machine.triton else ""
    compiler = f", {machine.compiler}" if machine.compiler else ", no C++ compiler"
    busy = _busy_cores(bench)
    crowded = ""
    if not machine.gpu and busy >= BUSY and busy + plan.threads > machine.all_cores - BUSY:
        crowded = f" **Other programs kept {busy:.1f} cores busy meanwhile: neither its times nor their ratios hold.**"
    unfinished = "" if bench.complete else " It was stopped before its end."
    return (
        f"Measured by `{bench.command}` of version {bench.probe} on {bench.made[:10]}: {on}{cores}{size}, "
        f"{machine.system}, torch {machine.torch}{triton}{compiler}. Medians of up to {plan.repeats} runs after "
        f"one that does not count; fewer where they take more than {plan.enough_seconds:g} s together."
        f"{unfinished}{crowded}"
    )


def _layer(bench: Bench) -> Iterator[Table]:
    shape, found = bench.plan.layer, _of_section(bench, "layer")
    if shape is None:
        return
    rows = []
    for m in found:
        sdpa = _same(found, m, "sdpa", statistics=False)
        eager = _same(found, m, "eager", statistics=True)
        scan = m.median_of("scan")
        base = None if sdpa is None else sdpa.median
        rows.append(
            (
                f"{m.job.length:,}",
                _label(m),
                _statistics(m.job),
                _time(m),
                NONE if scan is None else in_seconds(scan),
                _memory(m.extra_bytes),
                _ratio(m.median, base),
                _ratio(scan, base),
                _ratio(eager.median, m.median) if eager is not None and eager is not m else NONE,
                _ratio(eager.extra_bytes, m.extra_bytes) if eager is not None and eager is not m else NONE,
            )
        )
    yield Table(
        f"Attention statistics of one layer: {shape.heads} heads, {shape.kv_heads} key heads, width {shape.head_dim}, "
        f"{bench.plan.dtype}, causal",
        (
            *("tokens", "what", "statistics", "time", "the scan's", "memory"),
            *("time ÷ SDPA", "the scan's ÷ SDPA", "eager's time ÷ it", "eager's memory ÷ it"),
        ),
        3,
        tuple(rows),
        (
            "Flash + scan: a flash forward, counted in, hands over its log-sum-exp, and the scan need not compute it.",
            "Memory is the peak beyond inputs and loaded code.",
            *(f"{name} is {', '.join(s)}." for name, s in bench.plan.statistics.items() if len(s) > 1),
            *_skipped(found),
        ),
    )


def _growth(bench: Bench) -> Iterator[Table]:
    rows = []
    for fit in growths(bench):
        first, last = fit.measurements[0], fit.measurements[-1]
        rows.append(
            (
                _label(first),
                _statistics(first.job),
                f"{_memory(first.extra_bytes)} at {first.job.length:,}",
                f"{_memory(last.extra_bytes)} at {last.job.length:,}",
                in_bytes(fit.bytes_per_token),
                f"{fit.exponent:.2f}",
            )
        )
    if rows:
        yield Table(
            "Memory over the lengths",
            ("what", "statistics", "shortest", "longest", "a token adds", "exponent"),
            2,
            tuple(rows),
            ("The exponent is of a power of the length: 1 is linear, 2 quadratic, below 1 where a constant leads.",),
        )


def _model(bench: Bench) -> Iterator[Table]:
    shape, found = bench.plan.model, _of_section(bench, "model")
    if shape is None:
        return
    rows = []
    for m in found:
        alone = _same(found, m, "prefill", statistics=False)
        rows.append(
            (
                f"{m.job.length:,}",
                _label(m),
                _statistics(m.job),
                _time(m),
                _memory(m.peak_bytes),
                _ratio(m.median, None if alone is None else alone.median),
                _ratio(m.peak_bytes, None if alone is None else alone.peak_bytes),
            )
        )
    sizes = (
        shape.name
        if shape.loaded
        else f"{shape.name}, {shape.num_parameters / 1e6:,.0f} million random weights, {shape.layers} layers, "
        f"{shape.heads} heads, {shape.kv_heads} key heads, width {shape.head_dim}"
    )
    yield Table(
        f"Prefill of a model: {sizes}, {bench.plan.dtype}, chunks of {bench.plan.chunk_tokens:,} tokens",
        ("tokens", "what", "statistics", "time", "memory", "time ÷ untraced", "memory ÷ untraced"),
        3,
        tuple(rows),
        (
            "Memory is all of it, weights and cache included. Traced: statistics of every layer, the loss of every "
            "token and one decoded token.",
            *_skipped(found),
        ),
    )


def _busy_cores(bench: Bench) -> float:
    """Return the cores that others kept busy, on average over the time of all measurements."""
    spans = [(m.busy_cores, sum(m.seconds) + (m.warm_up_seconds or 0.0)) for m in bench.measurements]
    known = [(busy, seconds) for busy, seconds in spans if busy is not None]
    total = sum(seconds for _, seconds in known)
    return sum(busy * seconds for busy, seconds in known) / total if total else 0.0


def _of_section(bench: Bench, section: Section) -> list[Measurement]:
    return [m for m in bench.measurements if case_of(m.job.case).section == section]


def _same(found: list[Measurement], like: Measurement, case: str, *, statistics: bool) -> Measurement | None:
    """Return the other case's measurement at the same length (and of the same statistics)."""
    for m in found:
        if (m.job.case, m.job.length) == (case, like.job.length) and not (
            statistics and m.job.statistics != like.job.statistics
        ):
            return m
    return None


def _skipped(found: list[Measurement]) -> Iterator[str]:
    for m in found:
        if m.skipped is None:
            continue
        sums = ""
        if m.needed_bytes is not None and m.available_bytes is not None:
            sums = f" (at least {in_bytes(m.needed_bytes)}, where {in_bytes(m.available_bytes)} are free)"
        what = f"{_label(m)}, {m.job.statistics}" if m.job.statistics else m.job.case
        yield f"Skipped: {what} at {m.job.length:,} tokens: {m.skipped}{sums}."


def _label(m: Measurement) -> str:
    return case_of(m.job.case).label(m.job, m.ran)


def _statistics(job: Job) -> str:
    return job.statistics or NONE


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _time(m: Measurement) -> str:
    return "skipped" if m.median is None else in_seconds(m.median)


def _memory(number: int | None) -> str:
    return NONE if number is None else in_bytes(number)


def _ratio(number: float | None, base: float | None) -> str:
    if number is None or base is None or number <= 0 or base <= 0:
        return NONE
    ratio = number / base
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def in_seconds(number: float) -> str:
    """Return a time in words, to three digits."""
    if number < 1e-3:
        return f"{number * 1e6:.0f} µs"
    if number < 1:
        return f"{number * 1e3:.{0 if number >= 0.1 else 1}f} ms"
    return f"{number:.2f} s" if number < 10 else f"{number:.1f} s" if number < 100 else f"{number:,.0f} s"


def in_bytes(number: float) -> str:
    """Return a size in words, in decimal units."""
    size = abs(number)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{number:.{1 if size < 10 and unit != 'B' else 0}f} {unit}"
        number, size = number / 1000, size / 1000
    return f"{number:,.{2 if size < 10 else 1}f} GB"
