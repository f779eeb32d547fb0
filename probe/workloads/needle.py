"""A needle in a haystack: one sentence that matters, in a text of any length, asked for at the end."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from probe.errors import UsageError
from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.asking import SPARE_TOKENS, answer_tokens
from probe.workloads.chat_text import Chat, ChatTokenizer, in_chat
from probe.workloads.grid import beyond
from probe.workloads.haystack import file_sentences, haystack_sentences
from probe.workloads.lexicon import CITIES, NEEDLE, NUMBERS, QUESTION
from probe.workloads.marked_text import MarkedText, Tokenised, encode, require_offsets

_NUMBERS_PER_NEEDLE = 4
_MOST_DISTRACTORS = len(NUMBERS) // _NUMBERS_PER_NEEDLE - 1


class Cell(NamedTuple):
    """Where one sample stands in the grid."""

    length: int
    """Length that is asked for, in tokens of the prompt."""
    depth: float
    """Where the needle stands, from 0 (first) to 1 (right before the question)."""
    seed: int
    """Index of the sample in its cell, from 0."""

    @property
    def name(self) -> str:
        """The sample's name, the same in every condition."""
        return f"needle-{self.length}-{self.depth:.2f}-s{self.seed}"


@dataclass(frozen=True)
class needle:
    """Prompts that hide "The magic number for Zurich is 73 51 20 88." in a haystack and end by asking for it.

    After Kamradt's needle test (https://github.com/gkamradt/LLMTest_NeedleInAHaystack), with an answer that cannot
    be guessed and needles about other cities beside it. A sample depends only on `seed` and its cell, so a grid may be
    cut in any way; and a cell keeps its city, its answer and its distractors under every `needle` and `haystack`, so
    that samples of the same name pair. It tests neither reasoning over the text nor several needles at a time.
    """

    lengths: tuple[int, ...] = (64, 128, 256)
    """Prompt lengths in tokens, special tokens included; met to within one sentence and never exceeded."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The needle's place as a share of the haystack's tokens before it: 0 is first, 1 right before the question."""
    samples: int = 8
    """Samples for each pair of length and depth."""
    seed: int = 0
    """Another seed gives other texts, needles and answers in every cell."""
    distractors: int | None = None
    """Needles about other cities. None: one for each 32 tokens of the length less one, at most 7, and fewer where they
    do not fit."""
    needle: Literal["present", "absent"] = "present"
    """`absent` leaves the needle out and fills up with haystack: an answer that is right then was guessed."""
    haystack: str = "templates"
    """`templates` (sentences of this toolkit's lexicon), `none` (the needle alone before the question, without
    distractors), or the path of a UTF-8 text file."""
    chat: Chat = "never"
    """Whether the prompt is put into the tokenizer's chat template: `never`, `always`, or `auto` (where it has one).
    The user's turn ends with the question, and its last words begin the assistant's; the span `question` then holds
    what the template writes between the two. Lengths include the template's tokens."""

    success_rule: SuccessRule = "exact"
    """`exact`, or `substring`: when an answer counts as right (probe.success)."""
    max_new_tokens: int | None = None
    """How many tokens are decoded. None: as many as the answer has, and 16 more where it is looked for in the text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
        object.__setattr__(self, "depths", tuple(float(depth) for depth in self.depths))
        _check(self)

    def files(self) -> dict[str, str]:
        """Return the file that the haystack comes from, by the name of the field."""
        return {} if self.haystack in ("templates", "none") else {"haystack": self.haystack}

    def cells(self) -> tuple[Cell, ...]:
        """Return the grid's cells by length, depth and sample; needs no tokenizer."""
        return tuple(
            Cell(length, depth, index)
            for length in self.lengths
            for depth in self.depths
            for index in range(self.samples)
        )

    def build(self, tokenizer: Any, cells: Iterable[Cell] | None = None) -> Iterator[Sample]:
        """Yield a sample for each cell (all of them, or those given), for a fast Hugging Face tokenizer.

        Raises `UsageError` before the first sample where a needle cannot fit its length, naming the least length that
        holds it, or where the tokenizer knows no offsets, and `NotAvailable` where the haystack's file cannot be read;
        `UsageError` later where the tokenizer merges the answer's beginning into the prompt.
        """
        require_offsets(tokenizer)
        tokenizer = in_chat(tokenizer, self.chat, lambda text: text.rindex("?") + 1)
        if self.haystack not in ("templates", "none"):
            file_sentences(self.haystack)
        chosen = tuple(self.cells() if cells is None else cells)
        _check_fit(self, chosen, tokenizer)
        return (_sample(self, cell, tokenizer) for cell in chosen)


class _Plan(NamedTuple):
    """What a cell asks, before any haystack."""

    city: str
    value: str
    distractors: tuple[str, ...]
    other_values: tuple[str, ...]
    places: tuple[float, ...]
    sizes: tuple[int, ...] = ()

    @property
    def needle(self) -> str:
        return NEEDLE.format(city=self.city, value=self.value)

    @property
    def question(self) -> str:
        return QUESTION.format(city=self.city)


def _plan(workload: needle, cell: Cell) -> _Plan:
    # Drawn as many as there can be, so that the number of distractors changes neither the needle nor its distractors.
    rng = random.Random(f"{workload.seed}/{cell.name}/needle")
    cities = rng.sample(CITIES, _MOST_DISTRACTORS + 1)
    numbers = rng.sample(NUMBERS, _NUMBERS_PER_NEEDLE * len(cities))
    values = [" ".join(numbers[4 * i : 4 * i + 4]) for i in range(len(cities))]
    others = [NEEDLE.format(city=city, value=value) for city, value in zip(cities[1:], values[1:], strict=True)]
    places = tuple(rng.random() for _ in others)
    count = _num_distractors(workload, cell.length)
    return _Plan(cities[0], values[0], tuple(others[:count]), tuple(values[1 : count + 1]), places[:count])


def _num_distractors(workload: needle, length: int) -> int:
    if workload.haystack == "none":
        return 0
    if workload.distractors is not None:
        return workload.distractors
    return max(0, min(7, length // 32 - 1))


def _check(workload: needle) -> None:
    if not workload.lengths or any(length < 1 for length in workload.lengths):
        raise UsageError(f"needle: lengths must be positive numbers of tokens, not {list(workload.lengths)}")
    if not workload.depths or not all(0 <= depth <= 1 for depth in workload.depths):
        raise UsageError(f"needle: depths must lie between 0 and 1, not {list(workload.depths)}")
    if workload.max_new_tokens is not None and workload.max_new_tokens < 1:
        raise UsageError(f"needle: max_new_tokens must be 1 or more, not {workload.max_new_tokens}")
    if workload.samples < 1:
        raise UsageError(f"needle: samples must be 1 or more, not {workload.samples}")
    if workload.distractors is not None and not 0 <= workload.distractors <= _MOST_DISTRACTORS:
        raise UsageError(
            f"needle: distractors must lie between 0 and {_MOST_DISTRACTORS} (each number stands in a text once), "
            f"not {workload.distractors}"
        )
    if workload.chat not in get_args(Chat):
        raise UsageError(f"needle: chat must be {', '.join(get_args(Chat))}, not {workload.chat!r}")
    if workload.needle not in ("present", "absent"):
        raise UsageError(f"needle: needle must be present or absent, not {workload.needle!r}")
    if not workload.haystack:
        raise UsageError("needle: haystack must be templates, none or the path of a text file, not empty")
    if why := beyond(workload.lengths, [workload.depths], workload.samples, workload.max_new_tokens):
        raise UsageError(f"needle: {why}")
    depths = {f"{depth:.2f}" for depth in workload.depths}
    if len({*workload.lengths}) < len(workload.lengths) or len(depths) < len(workload.depths):
        raise UsageError(
            "needle: lengths and depths must differ from each other, the depths in their first two decimals"
        )


def _shortest(plan: _Plan, num_distractors: int) -> str:
    """Return the shortest prompt that holds the needle, so many distractors and the question."""
    return " ".join([*plan.distractors[:num_distractors], plan.needle, plan.question])


def _check_fit(workload: needle, cells: tuple[Cell, ...], tokenizer: Any) -> None:
    asked = workload.distractors or 0
    short = sorted(
        {
            cell.length
            for cell in cells
            if len(encode(tokenizer, _shortest(_plan(workload, cell), asked)).tokens) > cell.length
        }
    )
    if short:
        parts = "needle and question" if not asked else f"needle, {asked} distractors and question"
        raise UsageError(
            f"needle: {parts} do not fit into {', '.join(map(str, short))} tokens; with this tokenizer "
            f"{_enough(asked, tokenizer)} tokens hold them whatever the city and the numbers"
        )


def _enough(num_distractors: int, tokenizer: Any) -> int:
    """Return how many tokens the shortest prompt takes with the cities and numbers that take most."""
    number_tokens = sentence_tokens(tokenizer, list(NUMBERS))
    number = NUMBERS[number_tokens.index(max(number_tokens))]
    values = " ".join([number] * _NUMBERS_PER_NEEDLE)
    plans = [
        _Plan(city, values, (NEEDLE.format(city=city, value=values),) * num_distractors, (), ()) for city in CITIES
    ]
    return max(len(encode(tokenizer, _shortest(plan, num_distractors)).tokens) for plan in plans)


def _sample(workload: needle, cell: Cell, tokenizer: Any) -> Sample:
    plan = _plan(workload, cell)
    if workload.haystack == "none":
        filled = _Filled(_ask(workload, plan, [], 0), 0, 0)
    else:
        filled = _fill(workload, cell, plan, tokenizer)
    made = filled.text.tokenised(tokenizer)
    answer = f" {plan.value}"
    added = answer_tokens(tokenizer, filled.text.text, made.tokens, answer)
    looked_for = workload.success_rule != "exact" and workload.max_new_tokens is None
    return Sample(
        name=cell.name,
        success_rule=workload.success_rule,
        answers=() if workload.success_rule == "exact" else (plan.value,),
        max_new_tokens=len(added) + SPARE_TOKENS if looked_for else workload.max_new_tokens,
        distractor_answers=_other_answers(plan, made, tokenizer),
        tokens=made.tokens,
        spans=made.spans,
        answer_tokens=added,
        answer=answer,
        text=tokenizer.rendered(filled.text.text) if isinstance(tokenizer, ChatTokenizer) else filled.text.text,
        facts={
            "length": cell.length,
            "needle_depth": cell.depth,
            "seed": cell.seed,
            "workload_seed": workload.seed,
            "city": plan.city,
            "needle": workload.needle,
            "haystack": Path(workload.haystack).name,
            "haystack_sentences": filled.num_sentences,
            "haystack_repeats": filled.num_repeats,
            **(tokenizer.facts() if isinstance(tokenizer, ChatTokenizer) else {}),
            **_measured(made, added, getattr(tokenizer, "unk_token_id", None)),
        },
    )


def _other_answers(plan: _Plan, made: Tokenised, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Return the values of the needles about other cities that the text holds, as they would follow the question."""
    # Behind the question alone: what stands before it does not change them, and may be long.
    asked = encode(tokenizer, plan.question).tokens
    there = sum(span.name.startswith("distractor_") for span in made.spans)
    return tuple(answer_tokens(tokenizer, plan.question, asked, f" {value}") for value in plan.other_values[:there])


def _measured(made: Tokenised, answer_tokens: tuple[int, ...], unknown: int | None) -> dict[str, Any]:
    """Return the facts that the tokens decide."""
    spans = {span.name: span for span in made.spans}
    facts: dict[str, Any] = {
        "num_tokens": len(made.tokens),
        "num_distractors": sum(name.startswith("distractor_") for name in spans),
        "unknown_tokens": 0.0 if unknown is None else made.tokens.count(unknown) / len(made.tokens),
        "stripped_special_tokens": made.num_stripped,
        "achieved_depth": None,
        "answer_tokens_as_in_needle": None,
    }
    if "needle" in spans:
        start, value = spans["needle"].start - made.num_leading, spans["needle_value"]
        others = spans["question"].start - made.num_leading - len(spans["needle"])
        facts["achieved_depth"] = start / others if others else None
        facts["answer_tokens_as_in_needle"] = made.tokens[value.start : value.stop] == answer_tokens
    return facts


class _Filled(NamedTuple):
    text: MarkedText
    num_sentences: int
    num_repeats: int


class _Sentences:
    """A haystack's sentences, drawn as they are needed, with how many tokens each one is estimated to take."""

    def __init__(self, source: Iterator[tuple[str, int]], tokenizer: Any) -> None:
        self._source, self._tokenizer = source, tokenizer
        self.texts: list[str] = []
        self.repeats: list[int] = []
        self.num_tokens: list[int] = []
        self.before: list[int] = [0]

    def cover(self, num_tokens: int) -> None:
        """Draw until the estimates sum to more than `num_tokens`."""
        while self.before[-1] <= num_tokens:
            drawn = list(islice(self._source, min(16 + num_tokens // 16, 4096)))
            counts = sentence_tokens(self._tokenizer, [text for text, _ in drawn])
            self.texts += [text for text, _ in drawn]
            self.repeats += [repeat for _, repeat in drawn]
            self.num_tokens += counts
            self.before += list(accumulate(counts, initial=self.before[-1]))[1:]

    def reach(self, start: int, num_tokens: int) -> int:
        """Return how many sentences take at most `num_tokens` more (or fewer) than the first `start` do."""
        target = self.before[start] + num_tokens
        self.cover(target)
        return bisect_right(self.before, target) - 1


def sentence_tokens(tokenizer: Any, sentences: list[str]) -> list[int]:
    """Return how many tokens each sentence is estimated to take inside a text; never 0."""
    encoded = tokenizer([f" {text}" for text in sentences], add_special_tokens=False, verbose=False)
    return [max(1, len(tokens)) for tokens in encoded["input_ids"]]


def _fill(workload: needle, cell: Cell, plan: _Plan, tokenizer: Any) -> _Filled:
    """Return the text with the most sentences that stays within the cell's length.

    Estimates lead there in a few whole tokenisations, and the last two prove it: this text fits, and one more sentence
    does not.
    """
    rng = random.Random(f"{workload.seed}/{cell.name}/haystack")
    sentences = _Sentences(haystack_sentences(workload.haystack, rng), tokenizer)
    plan = _affordable(plan, cell.length, tokenizer)
    fits, too_many, at = 0, None, 0
    text = _compose(workload, cell, plan, sentences, 0)
    spare = cell.length - len(encode(tokenizer, text.text).tokens)
    while too_many is None or too_many - fits > 1:
        at = max(sentences.reach(at, spare), fits + 1)
        at = at if too_many is None else min(at, too_many - 1)
        sentences.cover(sentences.before[at])
        tried = _compose(workload, cell, plan, sentences, at)
        spare = cell.length - len(encode(tokenizer, tried.text).tokens)
        if spare >= 0:
            fits, text = at, tried
        else:
            too_many = at
    return _Filled(text, fits, max(sentences.repeats[:fits], default=0))


def _affordable(plan: _Plan, length: int, tokenizer: Any) -> _Plan:
    """Drop the last distractors that do not fit beside the needle; those that the user asked for are known to fit."""
    count = len(plan.distractors)
    while count and len(encode(tokenizer, _shortest(plan, count)).tokens) > length:
        count -= 1
    distractors = plan.distractors[:count]
    sizes = tuple(sentence_tokens(tokenizer, list(distractors))) if count else ()
    return plan._replace(distractors=distractors, places=plan.places[:count], sizes=sizes)


def _compose(workload: needle, cell: Cell, plan: _Plan, sentences: _Sentences, count: int) -> MarkedText:
    """Return the prompt with the first `count` sentences, the distractors between them, and the needle at its depth."""
    pieces: list[tuple[str | None, str]] = [(None, text) for text in sentences.texts[:count]]
    sizes = sentences.num_tokens[:count]
    gaps = [_gap(sizes, place) for place in plan.places]
    for index in sorted(range(len(gaps)), key=lambda index: (-gaps[index], index)):
        pieces.insert(gaps[index], (f"distractor_{index}", plan.distractors[index]))
        sizes.insert(gaps[index], plan.sizes[index])
    return _ask(workload, plan, pieces, _gap(sizes, cell.depth))


def _gap(sizes: list[int], share: float) -> int:
    """Return how many of the sentences of these sizes, in tokens, come nearest to a share of their sum."""
    before = list(accumulate(sizes, initial=0))
    return min(range(len(before)), key=lambda count: abs(before[count] - share * before[-1]))


def _ask(workload: needle, plan: _Plan, pieces: list[tuple[str | None, str]], gap: int) -> MarkedText:
    if workload.needle == "present":
        pieces.insert(gap, ("needle", plan.needle))
    text = MarkedText.join([*pieces, ("question", plan.question)])
    if workload.needle == "absent":
        return text
    start = text.ranges["needle"][0] + len(NEEDLE.split("{value}")[0].format(city=plan.city))
    return MarkedText(text.text, {**text.ranges, "needle_value": (start, start + len(plan.value))})
