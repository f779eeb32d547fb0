"""What an analysis is: a pure function from traces to a finding, that says what it asks and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, cast

from pydantic import JsonValue

from probe.finding import Finding

Parameters = Mapping[str, JsonValue]
Needs = Mapping[str, Parameters | Sequence[Parameters]]
"""Statistics by name, each with the parameters that differ from its defaults: {"received_mass": {"horizon": 64}}.

One that is needed in several forms has a list of them: {"match_mass": [{}, {"by": "induction"}]}.
"""

P = ParamSpec("P")


def needed_one_by_one(needs: Needs) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Yield each statistic that is needed with its parameters."""
    for name, parameters in needs.items():
        for each in [parameters] if isinstance(parameters, Mapping) else parameters:
            yield name, dict(each)


class Analysis(Protocol[P]):
    """A function `x(run, *, parameter=…) -> Finding` with the question that it answers.

    It is pure and deterministic: the same traces and parameters give the same finding, whatever the traces' order.
    """

    __name__: str
    question: str
    """What it answers, for `probe list` and the report."""
    source: str
    """Paper and section, or `this toolkit's own`."""
    reads_tokens: bool
    """Whether it compares token ids, which a private trace does not have."""
    does_without_attention: bool
    """Whether it answers a part of its question for a model that has no attention to capture."""
    about_recurrence: bool
    """Whether its question is about recurrent layers."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Finding:
        """Return the finding."""
        ...

    def needs(self, **parameters: Any) -> Needs:
        """Return the statistics to capture in baseline traces for these parameters of the analysis."""
        ...


def analysis(
    *,
    question: str,
    source: str,
    needs: Needs | Callable[..., Needs] | None = None,
    reads_tokens: bool = False,
    does_without_attention: bool = False,
    about_recurrence: bool = False,
) -> Callable[[Callable[P, Finding]], Analysis[P]]:
    """Mark a function as an analysis, and say what a casebook captures for it.

    `needs` is a mapping, or a function of the analysis' parameters (each with its default) where they decide what is
    captured. One that `reads_tokens` has nothing to say of private traces. For one that `does_without_attention`
    nothing is captured of a model that has none, as for one `about_recurrence` of a model in which no layer recurs. The
    decorated function stays itself: attributes are all that is added.
    """

    def needed(**parameters: Any) -> Needs:
        if callable(needs):
            return needs(**parameters)
        return needs or {}

    def mark(function: Callable[P, Finding]) -> Analysis[P]:
        marked = cast(Any, function)
        marked.question, marked.source, marked.needs = question, source, needed
        marked.reads_tokens, marked.does_without_attention = reads_tokens, does_without_attention
        marked.about_recurrence = about_recurrence
        return cast(Analysis[P], marked)

    return mark
