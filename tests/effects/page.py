"""The page docs/nulls.md: what every analysis says of nulls and of planted effects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.effects.playing import MOST_FALSE

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
DATA: Final = DOCS / "nulls.json"
PAGE: Final = DOCS / "nulls.md"


def stored() -> dict[str, Any]:
    """Return what was measured, by analysis."""
    if not DATA.is_file():
        return {}
    return {entry["analysis"]: entry for entry in json.loads(DATA.read_text(encoding="utf-8"))}


def store(entries: Mapping[str, Any]) -> None:
    """Write what was measured, and the page."""
    ordered = [entries[name] for name in sorted(entries)]
    DATA.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(entries), encoding="utf-8")


def page(entries: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    return "\n".join([*_head(entries), *(line for name in sorted(entries) for line in _analysis(entries[name]))]) + "\n"


def worst(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the kind of null that an analysis does worst on."""
    return max(entry["nulls"], key=lambda null: null["upper_bound"])


def _head(entries: Mapping[str, Any]) -> Iterator[str]:
    yield "# What every analysis says where the truth is known"
    yield ""
    yield "An analysis that finds its phenomenon in noise is worthless, and so is one that never finds it. Each is"
    yield "given traces without the effect (nulls) and traces in which it was planted. Written by"
    yield "`python -m tests.effects`, which the nightly test runs; what is planted stands in `tests/effects/`."
    yield ""
    yield "- **Nulls**: the share of which it says `supported`, with the exact upper 95 % bound (one-sided); at most"
    yield f"  {MOST_FALSE:.0%} is allowed. Where there are several kinds of null, the worst stands here."
    yield "- **Power**: the share of planted effects of which it says `supported`, from no effect to the strongest."
    yield "- **Heads**: of those that it names at the strongest effect, the share that was planted (precision), and of"
    yield "  those planted the share that it names (recall)."
    yield ""
    yield "| analysis | nulls | supported | upper bound | power, weakest to strongest | precision | recall |"
    yield "| --- | --: | --: | --: | --- | --: | --: |"
    for name in sorted(entries):
        entry = entries[name]
        null, last = worst(entry), entry["planted"][-1]
        power = " ".join(f"{row['supported'] / row['n']:.2f}" for row in entry["planted"])
        bound = f"{null['upper_bound']:.1%}"
        bound = bound if null["upper_bound"] <= MOST_FALSE else f"**{bound}, too high**"
        yield (
            f"| [`{name}`](#{name}) | {null['n']} | {null['supported']} | {bound} | {power} "
            f"| {_share(last.get('precision'))} | {_share(last.get('recall'))} |"
        )


def _analysis(entry: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## {entry['analysis']}"
    yield ""
    if entry.get("date"):
        yield f"Measured on {entry['date']}. Planted: {entry['what']}"
        yield ""
    yield "| null | n | supported | refuted | inconclusive | upper bound |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for null in entry["nulls"]:
        yield (
            f"| {null['made_of']} | {null['n']} | {null['supported']} | {null['refuted']} | {null['inconclusive']} "
            f"| {null['upper_bound']:.1%} |"
        )
    heads = "precision" in entry["planted"][0]
    yield ""
    yield f"| strength | n | supported |{' precision | recall |' if heads else ''}"
    yield f"| --: | --: | --: |{' --: | --: |' if heads else ''}"
    for row in entry["planted"]:
        beside = f" {_share(row['precision'])} | {_share(row['recall'])} |" if heads else ""
        yield f"| {row['strength']:g} | {row['n']} | {row['supported']} |{beside}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
