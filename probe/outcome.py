"""What a model answered to one sample, and how well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probe.sample import Span
from probe.withheld import token_ids_from_json, token_ids_to_json


@dataclass(frozen=True)
class Outcome:
    """What the model answered to one sample under one condition. Says nothing of why, nor of how long it took."""

    response: str = ""
    """The decoded answer as text; empty where nothing was asked or the unit failed."""
    response_tokens: tuple[int, ...] = ()
    """Token ids of the decoded answer."""
    correct: bool | None = None
    """Whether the success rule holds; None where nothing was asked or the unit failed."""
    success_rule: str = ""
    """The rule behind `correct` in a sentence (`probe.success.RULES`); empty where nothing was asked."""
    answer_log_probability: tuple[float, ...] = ()
    """Log-probability of each token of the right answer given what stands before it (teacher forced), in nats."""
    text_loss: float | None = None
    """Mean negative log-likelihood of the prompt's tokens from the second on, in nats per token."""
    failed: str | None = None
    """Why the unit failed, in one sentence; None where it did not."""
    score: float | None = None
    """Share of the accepted answers that the response holds, where the rule looks for several; else 1 or 0."""
    response_spans: tuple[Span, ...] = ()
    """Stretches of the response that matter, by position in the whole sequence (the prompt's length on): `thinking`."""

    @property
    def answer_loss(self) -> float | None:
        """Mean negative log-likelihood of the right answer, in nats per token; None where there is no answer."""
        if not self.answer_log_probability:
            return None
        return -math.fsum(self.answer_log_probability) / len(self.answer_log_probability)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values, numbers that are not finite as strings; `from_json` turns them back."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        value["response_tokens"] = token_ids_to_json(self.response_tokens)
        # Left out where there is none, so that an outcome of an older trace reads the same.
        del value["response_spans"]
        if self.response_spans:
            value["response_spans"] = [[span.name, span.start, span.stop] for span in self.response_spans]
        value["answer_log_probability"] = [_to_json(x) for x in self.answer_log_probability]
        value["text_loss"] = None if self.text_loss is None else _to_json(self.text_loss)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Rebuild an outcome from `to_json`'s result; raises TypeError or KeyError where it is not one."""
        fields = dict(value)
        fields["response_tokens"] = token_ids_from_json(value["response_tokens"])
        fields["answer_log_probability"] = tuple(float(x) for x in value["answer_log_probability"])
        fields["text_loss"] = None if value["text_loss"] is None else float(value["text_loss"])
        fields["response_spans"] = tuple(Span(*span) for span in value.get("response_spans", ()))
        return cls(**fields)


def _to_json(number: float) -> float | str:
    number = float(number)
    return number if math.isfinite(number) else str(number)
