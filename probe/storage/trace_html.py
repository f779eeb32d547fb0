"""How a trace shows itself in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Final

from probe.visible import visible

if TYPE_CHECKING:
    from probe.outcome import Outcome
    from probe.sample import Sample
    from probe.storage.unit_trace import Trace

_LONGEST: Final = 800


def trace_html(trace: Trace) -> str:
    """Return a trace as HTML: the sample, the answer, the statistics with their axes and units, and where from."""
    facts = {
        "sample": _sample(trace.sample),
        "condition": " · ".join(filter(None, [trace.stage, trace.condition, _pairs(trace.facts)])),
        "answer": _outcome(trace.outcome),
        "from": _pairs(trace.provenance),
    }
    about = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{_text(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{cell}</td>" for cell in (f"<b>{_text(name)}</b>", *cells))
        + "</tr>"
        for name, cells in _statistics(trace)
    )
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("statistic", "axes", "unit", "definition"))
    return (
        f"<div><p><b>Trace</b> {_text(trace.unit)}</p><table>{about}</table>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _statistics(trace: Trace) -> list[tuple[str, tuple[str, str, str]]]:
    described = []
    for name, array in trace.dataset.data_vars.items():
        axes = " × ".join(f"{dim} {size:,}" for dim, size in array.sizes.items())
        source = array.attrs.get("source")
        definition = f"{array.attrs.get('definition', '')}{f' ({source})' if source else ''}"
        described.append((str(name), (_text(axes), _text(array.attrs.get("unit") or "–"), _text(definition))))
    return described


def _sample(sample: Sample) -> str:
    spans = ", ".join(f"{span.name} [{span.start}, {span.stop})" for span in sample.spans)
    return " · ".join(filter(None, [sample.name, f"{len(sample):,} tokens", spans, _pairs(sample.facts)]))


def _outcome(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.failed:
        return f"failed: {outcome.failed}"
    verdict = {True: "right", False: "wrong", None: ""}[outcome.correct]
    rule = f"by the rule {outcome.success_rule}" if verdict and outcome.success_rule else ""
    loss = "" if outcome.answer_loss is None else f"{outcome.answer_loss:.3g} nats per token of the right answer"
    share = "" if outcome.score in (None, 0.0, 1.0) else f"{outcome.score:.0%} of the answers"
    return " · ".join(filter(None, [f"“{outcome.response}”", f"{verdict} {rule}".strip(), share, loss]))


def _pairs(values: Any) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items() if value not in (None, "", {}, []))


def _plain(value: Any) -> str:
    """Return a value as words: of what is nested no brackets of Python's own."""
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) if len(value) < 2 else f"({', '.join(map(_plain, value))})"
    return str(value)


def _text(value: object) -> str:
    text = str(value)
    return html.escape(visible(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"))
