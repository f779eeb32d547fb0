"""A question over documents, one of which answers it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.filling import filler
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Drawn, people, places
from probe.workloads.stretches import Stretch, stretch, written

INSTRUCTION: Final = (
    "Write a high-quality answer for the given question using only the provided search results (some of which might be "
    "irrelevant)."
)
"""What stands before the documents."""
_RANDOM_ORDER = " The search results are ordered randomly."
SUBJECTS: Final = (
    ("Observatory", "designed"),
    ("Bridge", "built"),
    ("Museum", "founded"),
    ("Library", "opened"),
    ("Canal", "surveyed"),
    ("Theatre", "restored"),
    ("Lighthouse", "commissioned"),
    ("Garden", "planted"),
    ("Archive", "catalogued"),
    ("Railway", "financed"),
)
"""What documents are about, and what somebody did to it."""
_DUMMIES_TRIED = 16

Given = Literal["all", "gold_only", "closed_book", "gold_absent", "gold_dummy", "all_dummies"]
"""What the prompt holds of the documents."""


class Document(NamedTuple):
    """One document before it is filled up."""

    title: str
    """Its title."""
    fact: tuple[str, str, str] | None
    """The sentence that tells somebody's name: before, the name, after; None in a dummy."""
    place: float
    """Share of its other sentences that stand before that sentence."""
    sentences: Drawn
    """The other sentences, which say nothing of what is asked."""


@dataclass(frozen=True)
class documents(Grid):
    """Multi-document question answering: invented documents, one of which says who did what is asked.

    Prompts and scoring of Liu et al. 2023 (Lost in the Middle, arXiv 2307.03172), closed-book, oracle and query-aware
    variants included. What differs: questions and documents are made from this toolkit's templates about invented
    places and people, where the paper has NaturalQuestions and Wikipedia, so that no answer can be known beforehand;
    distractors are of one relevance, not in decreasing order of it; 48 tokens are decoded (the paper: 100). With
    `gold_dummy` or `all_dummies` it gives the dummy documents of Hsieh et al. 2024 (Found in the Middle, arXiv
    2406.16008), whose text the paper does not give.
    """

    success_rule: SuccessRule = "substring"
    """`substring` as the paper has it."""
    max_new_tokens: int | None = 48
    """How many tokens are decoded. None: as many as the answer has and 16 more."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Place of the gold document: its index is this share of the last index, rounded."""
    num_documents: int | None = None
    """How many documents there are (the paper: 10, 20, 30), each filled up with sentences to share the length. None:
    one for each `document_tokens` of the length, at least 2 and at most 100."""
    document_tokens: int = 100
    """How many tokens of the length a document has (the paper: 100 at most), where `num_documents` is None."""
    distractors: Literal["related", "random"] = "related"
    """`related`: about another place of the same kind and what somebody did to it; `random`: about other kinds."""
    prompt: Literal["plain", "query_aware", "random_order"] = "plain"
    """`query_aware`: the question stands before the documents too; `random_order`: the prompt says that the order is
    random."""
    given: Given = "all"
    """`gold_only` (the paper's oracle), `closed_book` (no document), `gold_absent` (another distractor in its place),
    `gold_dummy` (a document that says nothing, about as long, in its place), `all_dummies` (one and the same such
    document everywhere)."""
    turned: float = 0.0
    """Every document stands this share of their number further on, the last ones at the beginning: the same documents
    at other places, to tell what a document says from where it stands."""

    def check(self) -> None:
        self.check_shares("depths", self.depths)
        if self.num_documents is not None and self.num_documents < 1:
            raise self.error(f"num_documents must be 1 or more, not {self.num_documents}")
        if self.document_tokens < 1:
            raise self.error(f"document_tokens must be 1 or more, not {self.document_tokens}")
        self.check_shares("turned", (self.turned,))

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"needle_depth": tuple(map(float, self.depths))}

    def cue(self) -> str:
        return "Answer:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        number = self.num_documents or min(max(2, cell.length // self.document_tokens), 100)
        index = round(cell.value("needle_depth") * (number - 1))
        turn = round(self.turned * number) % number
        rng = self.rng(cell, "question")
        kind, did = rng.choice(SUBJECTS)
        who, where = people(rng), places(rng)
        gold = _document(where.first(1)[0], kind, did, who.first(1)[0], rng, self._sentences(cell, 0))
        others = [self._distractor(cell, kind, did, who, where, at) for at in range(1, number + 1)]
        asked = f"Question: who {did} the {gold.title}?"

        def sizes(count: int) -> list[int]:
            # The gold document comes last, so that it has no sentence more than another one.
            shared = [count // number + (at < count % number) for at in range(number)]
            return [*shared[: number - 1][:index], shared[-1], *shared[: number - 1][index:]]

        def prompt(made: list[tuple[Document, int]]) -> MarkedText:
            return self._prompt(asked, [*made[number - turn :], *made[: number - turn]], (index + turn) % number)

        def compose(count: int) -> MarkedText:
            whole = [*others[:index], gold, *others[index : number - 1]]
            return prompt(list(zip(whole, sizes(count), strict=True)))

        what = f"{self.name}: the question with {number} documents"
        count, text = fit(compose, cell.length, tokenizer, what=what)
        if self.given == "closed_book":
            text = written(stretch("question", f"{asked}\nAnswer:"))
        elif self.given == "gold_only":
            text = self._prompt(asked, [(gold, sizes(count)[index])], 0)
        elif self.given != "all":
            instead = [others[-1]] if self.given == "gold_absent" else self._dummies(cell)
            whole = [*others[:index], gold, *others[index : number - 1]]
            tokens = [_tokens(each, size, tokenizer) for each, size in zip(whole, sizes(count), strict=True)]
            every = self.given == "all_dummies"
            # As long as a document is in the mean, so that with dummies everywhere places stay where they were.
            wanted = sum(tokens) // number if every else tokens[index]
            there = _like(wanted, max(sizes(count)) if every else sizes(count)[index], instead, tokenizer)
            whole[index] = there[0]
            made = [(each, there[1] if at == index else sizes(count)[at]) for at, each in enumerate(whole)]
            text = prompt([there] * number if every else made)
            within(text, cell.length, tokenizer, what=what)
        assert gold.fact is not None
        answer = gold.fact[1]
        stands = (index + turn) % number
        facts = {"given": self.given, "num_documents": number, "gold_index": stands, "filler_sentences": count}
        if turn:
            facts |= {"turned_places": turn, "needle_depth": stands / (number - 1)}
        return self.made(cell, text, tokenizer, answer=f" {answer}", accepted=(answer,), facts=facts)

    def _distractor(self, cell: Cell, kind: str, did: str, who: Drawn, where: Drawn, at: int) -> Document:
        rng = self.rng(cell, f"distractor {at}")
        if self.distractors == "random":
            kind, did = rng.choice([subject for subject in SUBJECTS if subject[0] != kind])
        return _document(where.first(at + 1)[at], kind, did, who.first(at + 1)[at], rng, self._sentences(cell, at))

    def _sentences(self, cell: Cell, at: int) -> Drawn:
        return filler("templates", self.rng(cell, f"document {at}"))

    def _dummies(self, cell: Cell) -> list[Document]:
        title = f"{places(self.rng(cell, 'dummy')).first(1)[0]} Notes"
        return [Document(title, None, 0.0, self._sentences(cell, -1 - at)) for at in range(_DUMMIES_TRIED)]

    def _prompt(self, asked: str, made: list[tuple[Document, int]], index: int) -> MarkedText:
        found: list[str | Stretch] = []
        for at, (document, size) in enumerate(made):
            shown = _shown(document, at, size)
            if at != index or (document.fact is not None and self.given == "gold_absent"):
                found += ["\n", stretch(f"document_{at}", *_plain(shown))]
            else:
                name = "dummy" if document.fact is None else "needle"
                found += ["\n", stretch(f"document_{at}", stretch(name, *shown))]
        before: list[str | Stretch] = ["\n\n", stretch("question_before", asked)]
        before = before if self.prompt == "query_aware" else []
        order = _RANDOM_ORDER if self.prompt == "random_order" else ""
        return written(
            stretch("instruction", INSTRUCTION + order), *before, "\n", *found, "\n\n",
            stretch("question", f"{asked}\nAnswer:"),
        )  # fmt: skip


def _document(place: str, kind: str, did: str, person: str, rng: random.Random, sentences: Drawn) -> Document:
    title = f"{place} {kind}"
    return Document(title, (f"The {title} was {did} by ", person, "."), rng.random(), sentences)


def _shown(document: Document, at: int, size: int) -> list[str | Stretch]:
    """Return a document as the prompt shows it: its fact, where it has one, and `size` sentences; a dummy one more."""
    sentences = document.sentences.first(size + (document.fact is None))
    head = f"Document [{at + 1}](Title: {document.title}) "
    if document.fact is None:
        return [head, " ".join(sentences)]
    before, name, after = document.fact
    split = round(document.place * len(sentences))
    texts = [" ".join(sentences[:split]), " ".join(sentences[split:])]
    fact = stretch("needle_fact", before, stretch("needle_value", name), after)
    return [head, texts[0] and f"{texts[0]} ", fact, texts[1] and f" {texts[1]}"]


def _plain(shown: list[str | Stretch]) -> list[str]:
    return [_text(piece) for piece in shown]


def _text(piece: str | Stretch) -> str:
    return piece if isinstance(piece, str) else "".join(map(_text, piece.pieces))


def _like(wanted: int, size: int, instead: list[Document], tokenizer: Any) -> tuple[Document, int]:
    """Return the document, and its number of sentences, that takes most tokens among those of at most `wanted`.

    So that a prompt with it in another document's place is no longer, and hardly shorter.
    """
    known = [
        (_tokens(each, fewer, tokenizer), -at, fewer)
        for at, each in enumerate(instead)
        for fewer in range(max(0, size - 2), size + 1)
    ]
    fitting = [each for each in known if each[0] <= wanted]
    _, at, fewer = max(fitting) if fitting else min(known)
    return instead[-at], fewer


def _tokens(document: Document, size: int, tokenizer: Any) -> int:
    shown = "".join(_plain(_shown(document, 0, size)))
    return len(tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"])
