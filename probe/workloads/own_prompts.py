"""A user's own prompts, with the spans and answers that they state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from probe.errors import UsageError
from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.asking import asked
from probe.workloads.json_lines import Line, read_lines
from probe.workloads.marked_text import MarkedText, require_offsets

_FIELDS: Final = ("text", "answer", "answers", "spans", "name", "facts")


@dataclass(frozen=True)
class own_prompts:
    """Prompts of your own, from JSON Lines: `text`, and where you like `answer`, `answers`, `spans`, `name`, `facts`.

    `spans` is `{name: [start, stop]}` in characters of the text; name what holds the answer `needle`, and the answer's
    own place in it `needle_value`, and every analysis finds them. `answer` follows the text, after a space unless one
    of the two brings white space; without it nothing is asked. `answers` are others that count as right. `facts` are
    put with the sample: `needle_depth`, say.
    """

    file: str = ""
    """Path of the JSON Lines file."""
    samples: int | None = None
    """At most so many prompts, the first ones. None: all."""
    success_rule: SuccessRule = "exact"
    """`exact`, `substring`, `all` or `none`: when an answer counts as right (probe.success)."""
    max_new_tokens: int | None = None
    """How many tokens are decoded. None: as many as the answer has, and 16 more where it is looked for in the text."""

    def __post_init__(self) -> None:
        if not self.file:
            raise UsageError("own_prompts: file must be the path of a JSON Lines file")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"own_prompts: samples must be 1 or more, not {self.samples}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"own_prompts: max_new_tokens must be 1 or more, not {self.max_new_tokens}")

    def files(self) -> dict[str, str]:
        """Return the file that the prompts come from, by the name of the field."""
        return {"file": self.file}

    def build(self, tokenizer: Any) -> Iterator[Sample]:
        """Yield a sample for each line, for a fast Hugging Face tokenizer.

        Raises, before the first sample, NotAvailable for a file that cannot be read and UsageError with file, line and
        field for a line that cannot be; UsageError later where a line's answer does not survive tokenisation.
        """
        require_offsets(tokenizer)
        checked = [_checked(line) for line in read_lines(self.file, _FIELDS)]
        names = [_name(line) for line in (line for line, _ in checked)]
        for (line, _), name in zip(checked, names, strict=True):
            if names.count(name) > 1:
                raise line.error("name", f"two prompts are called {name!r}")
        chosen = list(zip(checked, names, strict=True))[: self.samples]
        return (self._sample(line, text, name, at, tokenizer) for at, ((line, text), name) in enumerate(chosen))

    def _sample(self, line: Line, text: MarkedText, name: str, at: int, tokenizer: Any) -> Sample:
        answer = line.text("answer", needed=False) or ""
        if answer and not text.text[-1].isspace() and not answer[0].isspace():
            answer = f" {answer}"
        accepted = line.texts("answers")
        if accepted or (answer and self.success_rule in ("substring", "all")):
            # Under `all` the answers that are listed are what is looked for; under `substring` each one counts.
            own = () if self.success_rule == "all" and accepted else (answer.strip(),)
            accepted = tuple(dict.fromkeys((*own, *accepted)))
        try:
            made = asked(
                name,
                text,
                tokenizer,
                answer=answer,
                accepted=accepted,
                success_rule=self.success_rule,
                max_new_tokens=self.max_new_tokens,
                facts={"workload": "own_prompts", "line": line.number, "seed": at, "file": Path(self.file).name},
            )
        except UsageError as error:
            raise UsageError(f"{self.file}:{line.number}: {error}") from None
        facts = {"length": len(made.tokens), **made.facts, **line.pairs("facts")}
        return dataclasses.replace(made, facts=facts)


def _name(line: Line) -> str:
    return line.text("name", needed=False) or f"own_prompts-{line.number}"


def _checked(line: Line) -> tuple[Line, MarkedText]:
    """Check every field of a line, and return it with its text and spans."""
    text = line.text("text")
    assert text is not None
    line.text("answer", needed=False)
    if line.texts("answers") and "answer" not in line.value:
        raise line.error("answers", "there must be an `answer` beside it, whose loss is measured")
    ranges: dict[str, tuple[int, int]] = {}
    for name, value in line.pairs("spans").items():
        ranges[name] = _range(line, name, value, text)
    for name, value in line.pairs("facts").items():
        if not isinstance(value, str | int | float) and value is not None:
            raise line.error(f"facts.{name}", f"expected a number or a text, got {type(value).__name__}")
        if name in ("length", "needle_depth", "seed") and (isinstance(value, bool | str) or value is None):
            raise line.error(f"facts.{name}", f"expected a number, got {value!r}")
        if name == "needle_depth" and not 0 <= float(value or 0) <= 1:
            raise line.error("facts.needle_depth", f"expected a share between 0 and 1, got {value!r}")
    return line, MarkedText(text, ranges)


def _range(line: Line, name: str, value: Any, text: str) -> tuple[int, int]:
    whole = isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value)
    if not whole or not 0 <= value[0] < value[1] <= len(text):
        raise line.error(
            f"spans.{name}", f"expected [start, stop] in characters of a text of {len(text)}, got {str(value)[:60]}"
        )
    start, stop = value
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    if start == stop:
        raise line.error(f"spans.{name}", "nothing but white space stands there")
    return start, stop
