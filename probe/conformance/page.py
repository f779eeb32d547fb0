"""The page of models: what the conformance run found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from probe.conformance.result import Architecture, Conformance, Way

_INTRODUCTION = """# Models

This page is written by `probe conformance` and is never edited by hand; a test holds that it is the rendering of
[models.json](../probe/conformance/models.json), another that the file's claims are true for a dozen of architectures,
and a nightly one for all.

For each architecture a tiny model with random weights is made from its configuration class, and captured as any model
is: a prompt in one piece (prefill), in chunks on the cache, the model's own answer decoded on the cache, and a batch of
two prompts of which one is padded on the left. Every statistic is compared with what plain NumPy makes of the model's
own eager attention in float64, which knows nothing of the capture; recurrent states with the model's own cache, token
by token. What its attention has is read from its calls, its modules and its positions.

- **exact**: every array is within {tolerance:g} · max(1, |x|) of float64 (four times that where a recurrent state is
  carried on in float32), or within four times the deviation of the model's own eager attention in float32 where that is
  more. The figure is the largest deviation.
- **refused**: the toolkit says that it cannot, and why.
- **wrong**: it gave other numbers.
- **failed**: an error that is no refusal.
- **unchecked**: nothing independent was there to compare with; the toolkit's own check of every call still ran.
"""


def page(found: Conformance) -> str:
    """Return the page."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Conformance) -> Iterator[str]:
    yield _INTRODUCTION.format(tolerance=found.tolerance)
    counts = {verdict: sum(each.verdict == verdict for each in found.architectures) for verdict in _MARKS}
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    yield f"{len(found.architectures)} entries: {said}. Written with {versions}.\n"
    for family in ("decoder", "hybrid", "recurrent", "encoder-decoder", "encoder", ""):
        members = [each for each in found.architectures if each.family == family]
        if not members:
            continue
        yield f"## {_TITLES[family]}\n"
        yield "| architecture | models | backend | its attention has | prefill | chunks | decode | padded |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        yield from map(_row, members)
        yield ""
        yield from _notes(members)
    yield from _of_random(found)


_MARKS = ("exact", "refused", "wrong", "failed", "unchecked")
_TITLES = {
    "decoder": "Decoders",
    "hybrid": "Hybrids of attention and recurrence",
    "recurrent": "Recurrent models",
    "encoder-decoder": "Encoder-decoders",
    "encoder": "Encoders",
    "": "Not made",
}


def _row(each: Architecture) -> str:
    ways = [_cell(each.ways.get(name)) for name in ("prefill", "chunks", "decode", "padded")]
    cells = [f"`{each.name}`", each.names, each.backend, ", ".join(each.has) or "–", *ways]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(way: Way | None) -> str:
    if way is None:
        return "–"
    return f"exact, {way.deviation:.0e}" if way.verdict == "exact" and way.deviation is not None else way.verdict


def _notes(members: list[Architecture]) -> Iterator[str]:
    """Yield why ways are not exact, and what an unusual architecture was compared with."""
    lines = []
    for each in members:
        reasons: dict[str, list[str]] = {}
        for name, way in each.ways.items():
            if way.reason:
                reasons.setdefault(f"{way.verdict}: {way.reason}", []).append(name)
        for reason, names in reasons.items():
            where = "" if len(names) == len(each.ways) else f" ({', '.join(names)})"
            lines.append(f"- `{each.name}`{where} {_escaped(reason)}")
    yield from [*lines, ""] if lines else []


def _of_random(found: Conformance) -> Iterator[str]:
    if not found.random:
        return
    number = len(found.random)
    count = {verdict: sum(each.verdict == verdict for each in found.random) for verdict in _MARKS}
    tried = number - count["unchecked"]
    yield "## Random configurations\n"
    yield (
        f"{number} configurations drawn with seed {found.seed}: heads and groups, widths (60 and 80 among them), "
        "windows, softcaps, kinds of RoPE scaling, biases, chunk sizes. "
        f"{count['unchecked']} of them transformers itself does not make, run, or run eagerly. "
        f"Of the other {tried}, all four ways are exact in {count['exact']}; "
        f"{count['refused']} ({count['refused'] / max(1, tried):.1%}) were refused in some way; "
        f"{count['wrong']} gave a wrong number; {count['failed']} failed.\n"
    )
    reasons: dict[str, int] = {}
    for each in found.random:
        if each.verdict not in ("exact", "unchecked"):
            text = f"{each.verdict}, `{each.architecture}`: {_escaped(each.reason)}"
            reasons[text] = reasons.get(text, 0) + 1
    for reason, times in sorted(reasons.items(), key=lambda item: -item[1]):
        yield f"- {times} × {reason}"


def _escaped(text: str) -> str:
    return text.replace("<", "‹").replace(">", "›").replace("|", "\\|")
