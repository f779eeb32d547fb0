"""The question before what it is asked of, and after it as well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from probe.errors import UsageError
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.inserted import Text, beginning, inserted, place_before, plain_ids
from probe.sample import Sample


@dataclass(frozen=True)
class question_twice(ChangeOfPrompt):
    """Let the model read the question before the context, too: `with question_twice()(model):`.

    Liu et al. (2023, arXiv 2307.03172, query-aware contextualization) write it in their own words; here the tokens of
    the sample's span `question` are copied as they stand, with whatever the workload has put into the span (`Answer:`,
    say), and are a span called `question_before`. Workloads with a query-aware form of their own should be asked for
    that instead: a sample that has a `question_before` already is refused, as is one without a question.
    """

    before: str | None = None
    """Name of the span that the copy stands before (`document_0`, `context`, a chat's `user_0`); None for the beginning
    of the text, behind special tokens."""
    separator: Text = "\n\n"
    """What stands between the copy and what follows: token ids or text; empty for nothing."""
    span: str = "question"
    """Name of the span that is copied."""

    def __post_init__(self) -> None:
        if not isinstance(self.separator, int | str):
            object.__setattr__(self, "separator", tuple(map(int, self.separator)))

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        if any(span.name == "question_before" for span in sample.spans):
            raise UsageError(f"question_twice: sample {sample.name!r} has the question before the context already")
        start = place_before(sample, self.span, "question_twice", "span")
        asked = sample.tokens[start : sample.span(self.span).stop]
        separator = plain_ids(model, self.separator, "question_twice", "separator")
        if self.before is None:
            at = beginning(model, sample)
        else:
            at = place_before(sample, self.before, "question_twice", "before")
        if at >= start:
            raise UsageError(
                f"question_twice: in sample {sample.name!r} nothing stands between {self.before or 'the beginning'} "
                "and the question; before says where the context begins"
            )
        made = inserted(sample, at, (*asked, *separator), "question_before")
        spans = [
            dataclasses.replace(span, stop=span.start + len(asked)) if span.name == "question_before" else span
            for span in made.spans
        ]
        return dataclasses.replace(made, spans=tuple(spans))
