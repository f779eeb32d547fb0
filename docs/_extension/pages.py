"""Writes every page that is generated into docs/generated, which git ignores, and removes what is there no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from . import casebook_pages, member_pages, members, verified
from .api_page import api
from .wording import capital, code, first_sentence, prose, table

_MAKE = {
    "analyses": member_pages.analysis,
    "statistics": member_pages.statistic,
    "interventions": member_pages.intervention,
    "workloads": member_pages.workload,
    "casebooks": casebook_pages.casebook,
    "published": casebook_pages.published,
    "specimens": casebook_pages.specimen,
}


def write(docs: Path) -> None:
    """Write all pages; one that is as it was is left alone, so that a second build reads only what changed."""
    out = docs / "generated"
    wanted = {out / f"{name}.md": text for name, text in _pages()}
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in out.rglob("*.md"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _pages() -> Iterator[tuple[str, str]]:
    for folder, make in _MAKE.items():
        for name in members.names(folder):
            page = f"{folder}/{name}"
            yield page, make(name)
        yield f"{folder}/index", _index(folder)
    yield "api", api()
    yield "verdicts", _verdicts()
    yield "methods", _methods()


def _index(folder: str) -> str:
    title, said, columns = {
        "analyses": ("Analyses", "One question each: traces in, a finding out.", ("analysis", "question", "source")),
        "statistics": (
            "Statistics",
            "What is reduced while scores stream through, and what is kept of caches, tokens and states.",
            ("statistic", "what it is", "from"),
        ),
        "interventions": (
            "Interventions",
            "What can be done to a loaded model or its prompt, none of which trains. [What they have in common]"
            "(../../interventions.md).",
            ("intervention", "what it does"),
        ),
        "workloads": ("Workloads", "[What they have in common](../../workloads.md).", ("workload", "what is asked")),
        "casebooks": ("Casebooks", "`probe run NAME` plays one.", ("casebook", "question", "model")),
        "published": (
            "Published figures",
            "For whoever has the weights: none of these was run where this was written.",
            ("casebook", "question", "figure read from", "state"),
        ),
        "specimens": (
            "Specimens",
            "Small models that ship, whose phenomena are known. They prove the instrument, and nothing about other "
            "models.",
            ("specimen", "what it is"),
        ),
    }[folder]
    return member_pages.index(folder, title, said, columns, _rows(folder))


def _rows(folder: str) -> Iterator[tuple[str, ...]]:
    for name in members.names(folder):
        link = f"[`{name}`]({name}.md)"
        if folder in ("casebooks", "published"):
            book = verified.casebooks(folder)[name]
            told = (book.published.verified, book.published.state) if book.published else (code(book.model),)
            yield (link, book.question, *told)
        elif folder == "specimens":
            from probe.specimens import card_sentence, folders

            yield link, prose(card_sentence(folders()[name] / "README.md"))
        else:
            found = members.member(folder, name)
            if folder == "analyses":
                yield link, found.question, prose(found.source)
            elif folder == "statistics":
                yield link, first_sentence(found.__doc__), found.kind
            else:
                yield link, first_sentence(found.__doc__)


def _verdicts() -> str:
    """Return, for each analysis, when it says supported or refuted, and what neither means."""
    parts = [
        "# Each finding: what it means, and what it does not",
        "The rule of each analysis, as its own description states it. Where neither holds, or where nothing could have "
        "shown, it is inconclusive. [What a finding consists of](../reading-findings.md).",
    ]
    for name in members.names("analyses"):
        found = members.member("analyses", name)
        caution, rest = member_pages.without_caution(found.__doc__ or "")
        rules = [each for each in rest.split("\n\n") if re.search(r"\b(supported|refuted)\b", each, re.IGNORECASE)]
        parts += [
            f"## {found.question}",
            f"[`{name}`](analyses/{name}.md)",
            *map(prose, rules),
            f"**What it does not mean.** {capital(prose(caution))}",
        ]
    return member_pages.joined(*parts)


def _methods() -> str:
    """Return the works that methods are from, how far each was read, and what here is after it."""
    after: dict[str, list[str]] = {}
    for folder in ("analyses", "statistics", "interventions", "workloads"):
        for name in members.names(folder):
            found = members.member(folder, name)
            for number in verified.cited(getattr(found, "source", ""), found.__doc__):
                after.setdefault(number, []).append(f"[`{name}`]({folder}/{name}.md)")
    known = verified.methods()
    rows = [
        (*row[:2], row[2] or "–", ", ".join(after.get(number, ())) or "–")
        for number, row in (
            (number, verified.source(number)) for number in sorted(known, key=lambda number: not known[number]["read"])
        )
    ]
    return member_pages.joined(
        "# Where each method comes from",
        "A definition that was transcribed from its authors' code is marked so, with the commit; one that was read at "
        "second hand or in an abstract alone is marked so too. What is *not verified* is not claimed here, and what is "
        "this toolkit's own is called that wherever it appears. Of the last ones the file that follows them says what "
        "it takes; how they were read was not recorded.",
        table(("work", "its definition was read from", "not verified", "here"), rows),
    )
