"""A user's own documents and the questions that one of them answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from probe.errors import NotAvailable, UsageError
from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.documents import INSTRUCTION
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.json_lines import Line, read_lines
from probe.workloads.marked_text import MarkedText
from probe.workloads.own_file import check_own_file
from probe.workloads.stretches import Stretch, stretch, written

_ENDINGS: Final = (".txt", ".md")
_MOST_MARKED: Final = 200


class OwnDocument(NamedTuple):
    """A document as it was given."""

    name: str
    """What a question calls it: the file's name, or its title in JSON Lines."""
    title: str
    """Its title."""
    text: str
    """Its text, white space single."""


@dataclass(frozen=True)
class own_documents(Grid):
    """Questions of your own over documents of your own, one of which answers each, in any place and at any length.

    `documents` is a folder of .txt and .md files, or JSON Lines with `title` and `text`; `questions` JSON Lines with
    `question`, `answer`, `document` (the file's name, or the title) and where you like `answers`. The prompt is that of
    Liu et al. 2023 (Lost in the Middle, arXiv 2307.03172). The document that answers is whole, and others, in an order
    drawn for each prompt, fill up the length; of more than 200 only that one is marked. Nothing checks that no other
    document answers.
    """

    samples: int = 1000
    """At most so many of the questions, the first ones."""
    success_rule: SuccessRule = "substring"
    """`substring`, `exact`, `all` or `none`."""
    max_new_tokens: int | None = 48
    """How many tokens are decoded. None: as many as the answer has and 16 more."""
    documents: str = ""
    """Path of the folder, or of the JSON Lines."""
    questions: str = ""
    """Path of the questions' JSON Lines."""
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Place of the document that answers: its index is this share of the last index, rounded."""
    instruction: str = INSTRUCTION
    """What stands before the documents."""
    given: Literal["all", "gold_only", "closed_book", "gold_absent"] = "all"
    """`gold_only` leaves the other documents out, `closed_book` all of them, `gold_absent` the one that answers."""

    def check(self) -> None:
        if not self.documents or not self.questions:
            raise self.error("documents and questions must be paths")
        self.check_shares("depths", self.depths)

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"needle_depth": tuple(map(float, self.depths))}

    def files(self) -> dict[str, str]:
        return {"documents": self.documents, "questions": self.questions}

    def num_samples(self) -> int:
        """Return how many questions are asked: all there are, where the file can be read, and `samples` at most."""
        return min(self.samples, len(_questions(self.questions))) if Path(self.questions).is_file() else 1

    def prepare(self, tokenizer: Any) -> None:
        known = {document.name for document in _documents(self.documents)}
        for line in _questions(self.questions):
            if line.value["document"] not in known:
                raise line.error("document", f"there is no {line.value['document']!r} in {self.documents}")

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        line = _questions(self.questions)[cell.seed]
        question, answer = str(line.value["question"]), str(line.value["answer"]).strip()
        found = _documents(self.documents)
        gold = next(document for document in found if document.name == line.value["document"])
        others = [document for document in found if document.name != gold.name]
        self.rng(cell, "order").shuffle(others)
        asked = stretch("question", f"Question: {question}\nAnswer:")

        def index(count: int) -> int:
            return round(float(cell.value("needle_depth")) * count)

        def compose(count: int) -> MarkedText:
            shown: list[OwnDocument | Stretch] = [*others[: index(count)]]
            shown += [] if self.given == "gold_absent" else [_gold(gold, answer)]
            shown += others[index(count) : count]
            pieces: list[str | Stretch] = []
            for at, each in enumerate(shown):
                inside = [f"Document [{at + 1}](", *_inside(each)]
                # Every span costs room in a trace, for each head.
                marked = isinstance(each, Stretch) or len(shown) <= _MOST_MARKED
                pieces += ["\n", stretch(f"document_{at}", *inside)] if marked else ["\n", *inside]
            return written(stretch("instruction", self.instruction), "\n", *pieces, "\n\n", asked)

        what = f"{self.name}: {line.file}:{line.number}: the question and {gold.name}"
        if self.given == "closed_book":
            count, text = 0, within(written(asked), cell.length, tokenizer, what=what)
        elif self.given == "gold_only":
            count, text = 0, within(compose(0), cell.length, tokenizer, what=what)
        else:
            count, text = fit(compose, cell.length, tokenizer, what=what, most=len(others))
        facts = {
            "given": self.given,
            "num_documents": count + (self.given in ("all", "gold_only")),
            "gold_index": index(count),
            "line": line.number,
            "answer_in_document": answer in gold.text,
        }
        accepted = tuple(dict.fromkeys((answer, *line.texts("answers"))))
        return self.made(cell, text, tokenizer, answer=f" {answer}", accepted=accepted, facts=facts)


def _gold(document: OwnDocument, answer: str) -> Stretch:
    """Return the document that answers, with the answer's first place in it where it holds the answer."""
    before, found, after = document.text.partition(answer)
    value = [stretch("needle_value", found)] if found else []
    return stretch("needle", f"Title: {document.title}) {before}", *value, after)


def _inside(document: OwnDocument | Stretch) -> list[str | Stretch]:
    return [document] if isinstance(document, Stretch) else [f"Title: {document.title}) {document.text}"]


def _questions(path: str) -> list[Line]:
    """Read the questions, each field checked."""
    try:
        changed = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise NotAvailable(f"{path}: {error.strerror or error}") from None
    return _read_questions(path, changed)


@lru_cache(maxsize=4)
def _read_questions(path: str, changed_ns: int) -> list[Line]:
    lines = read_lines(path, ("question", "answer", "answers", "document"))
    for line in lines:
        for field in ("question", "answer", "document"):
            line.text(field)
        line.texts("answers")
    return lines


def _documents(path: str) -> tuple[OwnDocument, ...]:
    """Read the documents, in the order of their names or lines; raises NotAvailable where there are none."""
    folder = Path(path)
    if not folder.exists():
        raise NotAvailable(f"{path}: there is no such folder or file")
    files = [folder] if not folder.is_dir() else sorted(each for each in folder.iterdir() if each.suffix in _ENDINGS)
    if not files:
        raise NotAvailable(f"{path}: the folder holds no {' or '.join(_ENDINGS)} file")
    try:
        return _read_documents(path, tuple((str(each), each.stat().st_mtime_ns) for each in files))
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"{path}: {error}") from error


@lru_cache(maxsize=4)
def _read_documents(path: str, files: tuple[tuple[str, int], ...]) -> tuple[OwnDocument, ...]:
    if Path(path).is_file():
        lines = read_lines(path, ("title", "text"))
        found = [OwnDocument(*(str(line.text(field)) for field in ("title", "title", "text"))) for line in lines]
        for at, (line, document) in enumerate(zip(lines, found, strict=True)):
            if document.name in {other.name for other in found[:at]}:
                raise line.error("title", f"two documents are called {document.name!r}")
    else:
        found = [OwnDocument(Path(each).name, Path(each).stem, _read(each)) for each, _ in files]
    return tuple(document._replace(text=" ".join(document.text.split())) for document in found)


def _read(path: str) -> str:
    check_own_file(path)
    text = Path(path).read_text(encoding="utf-8-sig")
    if not text.strip():
        raise UsageError(f"{path}: the file holds no text")
    return text
