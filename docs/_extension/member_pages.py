"""A page for each analysis, statistic, intervention and workload."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from . import members, verified
from .sample_shown import OWN, sample_shown
from .wording import capital, code, described, fields_table, parameters_table, prose, table


def analysis(name: str) -> str:
    """Return the page of an analysis."""
    found = members.member("analyses", name)
    apart, rest = without_caution(found.__doc__ or "")
    needs = found.needs()
    asked = table(
        ("statistic", "parameters"),
        [(f"[`{key}`](../statistics/{key}.md)", code(value) if value else "") for key, value in needs.items()],
    )
    return joined(
        f"# {name}",
        f"*{found.question}*",
        described("function", name, found, body=rest),
        f"## What it does not mean\n\n{capital(prose(apart))}",
        "## Parameters\n\n" + (parameters_table(found) or "It has none."),
        "## What it needs\n\n"
        + (asked or "Outcomes alone: no statistic has to be captured.")
        + ("\n\nA private trace, which holds no tokens, does not do." if found.reads_tokens else ""),
        f"## Where the method is from\n\n{prose(found.source)}.",
        verified.sources_table(found.source, found.__doc__),
        f"## How well it is verified\n\n{verified.nulls(name)}",
        _section("What it shows on the specimens", verified.expected_of(name), "`probe run … --check` holds it."),
        _section("Published figures", verified.published_of(name), "With real weights, which were not at hand here."),
        _tests(f"analyses/test_{name}.py", f"effects/{name}.py", "analyses/test_every_analysis.py"),
    )


def statistic(name: str) -> str:
    """Return the page of a statistic."""
    from probe.kernels.statistic import Statistic

    found = members.member("statistics", name)
    arrays = table(
        ("array", "axes", "unit", "parts merge by", "what it is"),
        [
            (
                code("_".join(filter(None, (name, suffix)))),
                " ".join(("layer", *facts.axes)),
                facts.unit or "–",
                facts.merge,
                prose(facts.meaning) or "as defined",
            )
            for suffix, facts in found.arrays.items()
        ],
    )
    asking = [each for each in members.names("analyses") if name in members.member("analyses", each).needs()]
    on_triton = found.on_triton is not Statistic.on_triton
    where = {
        "scan": "Triton's scan on a GPU, the blocked scan elsewhere"
        if on_triton
        else "the blocked scan, on a GPU too; it has no part in the Triton kernel",
        "row": "the rows that make the answer, read whole",
        "key": "the keys and values as they enter the cache",
        "residual": "the residual stream after each layer",
        "token": "the logits",
        "recurrence": "the states of recurrent layers",
    }[found.kind]
    return joined(
        f"# {name}",
        described("class", name, found, qualified=f"probe.kernels.{name}."),
        f"Computed by {where}." if found.kind == "scan" else f"Computed from {where}.",
        f"## Arrays\n\n{arrays}",
        "## Parameters\n\n" + (fields_table(found) or "It has none."),
        _section("Asked for by", ", ".join(f"[`{each}`](../analyses/{each}.md)" for each in asking)),
        f"## Where it is from\n\n{prose(found.source)}",
        verified.sources_table(found.source, found.__doc__),
        "## How well it is verified",
        "Its definition in float64 over dense probabilities (`reference`) stands in the same file; contract tests hold "
        "the blocked update to it over shapes and every split of queries and keys "
        "(`tests/kernels/test_statistics_agree_with_float64.py`, `tests/kernels/test_statistic.py`)."
        if found.reference is not Statistic.reference
        else "It is no function of attention's scores; tests hold it against what torch gives directly.",
        "Its part of the Triton kernel is checked in Triton's interpreter and compiled for three kinds of GPU; it has "
        "not run on one where this was written."
        if on_triton
        else "",
        verified.conformance(),
        f"Source: `{members.source_file(found)}`.",
    )


def intervention(name: str) -> str:
    """Return the page of an intervention."""
    found = members.member("interventions", name)
    kind = next(base.__name__ for base in found.__mro__[1:] if base.__name__ in _CHANGED)
    played = ", ".join(f"[`{each}`](../casebooks/{each}.md)" for each in verified.played_in(name))
    dense = (verified.ROOT / f"tests/interventions/definitions/{name}.py").is_file()
    return joined(
        f"# {name}",
        described("class", name, found),
        f"It changes {_CHANGED[kind]}. {_SETS.get(_decides(found), '')}".rstrip(),
        "## Fields\n\n" + (fields_table(found) or "It has none."),
        _section("Played by the casebooks", played),
        "## Where it is from",
        verified.sources_table(found.__doc__) or "It cites no paper: see its description.",
        "## How well it is verified",
        f"`tests/interventions/definitions/{name}.py` says densely, in float64 and independently, what it is; contract "
        "tests hold it to that over architectures, lengths, chunks and traces."
        if dense
        else "",
        "Contract tests hold that the model is bit-identical afterwards, also where the block raised, and that it "
        "goes through JSON unchanged. What it does to a large model's answers was not measured here.",
        _tests(f"*/test_{name}.py", f"*/test_{name}s.py"),
        f"Source: `{members.source_file(found)}`.",
    )


_CHANGED = {
    "EvictionAtPromptEnd": "which keys are seen: those evicted at the prompt's end are hidden from later queries",
    "EvictionByStep": "which keys are seen: it evicts at every step",
    "RescaledPositions": "positions: queries and keys are turned otherwise",
    "ChangeOfPositions": "positions: queries and keys are turned otherwise",
    "ChangeOfCalls": "calls of attention: queries, keys, values, mask or logits, before they are attended to",
    "ChangeOfPrompt": "the prompt, before it is read",
    "ChangeOfRecurrences": "recurrences: what a recurrent layer keeps, writes or reads",
    "Intervention": "what the model computes, by hooks of its own",
}
"""What an intervention changes, by what it derives from; the first of these that it meets counts."""

_SETS = {True: "Another that decides the same thing in the same place is refused beside it, by both names."}


def _decides(kind: type) -> bool:
    from probe.hooks.intervention import Intervention

    return kind.sets is not Intervention.sets  # type: ignore[attr-defined]


def workload(name: str) -> str:
    """Return the page of a workload, with a sample of it."""
    found = members.member("workloads", name)
    read = ", ".join(f"[`{each}`](../casebooks/{each}.md)" for each in verified.used_in(name))
    own = {field.name for field in dataclasses.fields(found)} & {"lengths", "samples", "seed"}
    return joined(
        f"# {name}",
        described("class", name, found),
        "## Fields\n\n" + (fields_table(found) or "It has none."),
        "[What all workloads share](../../workloads.md): lengths, spans, facts, success rules." if own else "",
        _axes(found),
        f"## A sample\n\n{sample_shown(name, found)}",
        _section("Read by the casebooks", read),
        _section("Where it is from", verified.sources_table(found.__doc__)),
        "## How well it is verified",
        "Contract tests hold its lengths, spans, answers, pairing and determinism for five kinds of tokenizer "
        "(`tests/workloads/test_every_workload.py`).",
        f"Source: `{members.source_file(found)}`.",
    )


def _axes(workload: Any) -> str:
    """Return the axes of a workload's grid in a sentence."""
    from probe.workloads.grid import Grid

    if not issubclass(workload, Grid) or workload.__name__ in OWN:
        return ""
    axes = " × ".join(code(axis) for axis in ("length", *workload().axes()))
    return f"The axes of its grid, as facts of a sample call them: {axes}, and samples of each cell."


def without_caution(docstring: str) -> tuple[str, str]:
    """Return the paragraph of a docstring that says what a finding does not mean, and the rest."""
    import inspect

    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    apart = [each for each in paragraphs if each.startswith(CAUTION)]
    return (
        " ".join(each.removeprefix(CAUTION).strip() for each in apart),
        "\n\n".join(each for each in paragraphs if each not in apart),
    )


CAUTION = "What it does not mean:"
"""How the paragraph of an analysis' docstring begins that says so."""


def joined(*parts: str) -> str:
    """Return a page of its parts, those that are empty left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, content: str, said: str = "") -> str:
    return joined(f"## {title}", content, said).rstrip() if content else ""


def _tests(*patterns: str) -> str:
    found = verified.test_files(*patterns)
    return "Tests: " + ", ".join(map(code, found)) + "." if found else ""


def index(folder: str, title: str, said: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return the page that lists a folder of pages."""
    listed = table(columns, rows)
    names = "\n".join(members.names(folder))
    return joined(f"# {title}", said, listed, f"```{{toctree}}\n:hidden:\n\n{names}\n```")
