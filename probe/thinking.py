"""Which tokens a reasoning model thinks in, told by the markers that its tokenizer knows."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.token_text import token_text
from probe.withheld import Withheld

MARKERS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
"""What opens and closes thinking, in the words of the models that are trained to think."""


def thinking_spans(tokenizer: Any, tokens: Sequence[int]) -> tuple[Span, ...]:
    """Return the stretches of `tokens` between the markers, which are not part of them: `thinking`, `thinking_1`, ….

    Only markers count that the tokenizer holds as tokens or that its chat template writes: to any other model the same
    letters are text. Thinking that is not closed reaches to the end. A token that holds a marker and a piece of thought
    counts as marker.
    """
    if tokenizer is None:
        return ()
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    # The first of the tokens that make an opening marker: `<|channel|>` of three.
    known = [(o, c) for o, c in MARKERS if o in template or o in added or f"{o.split('>')[0]}>" in added]
    if not known:
        return ()
    read = token_text(tokenizer, tokens)
    parts = [read[token] for token in tokens]
    starts, text = list(accumulate(map(len, parts), initial=0)), "".join(parts)
    found: list[tuple[int, int]] = []
    for opens, closes in known:
        at = text.find(opens)
        while at >= 0:
            stop = text.find(closes, at + len(opens))
            found.append((at + len(opens), len(text) if stop < 0 else stop))
            at = text.find(opens, stop + len(closes)) if stop >= 0 else -1
    spans = []
    for number, (first, last) in enumerate(sorted(found)):
        name = f"thinking_{number}" if number else "thinking"
        start, stop = bisect_left(starts, first), bisect_right(starts, last) - 1
        if start < stop:
            spans.append(Span(name, start, stop))
    return tuple(spans)


def with_thinking(sample: Sample, tokenizer: Any) -> Sample:
    """Return the sample with its thinking among its spans."""
    if isinstance(sample.tokens, Withheld) or any(span.name.startswith("thinking") for span in sample.spans):
        return sample
    found = thinking_spans(tokenizer, sample.tokens)
    return dataclasses.replace(sample, spans=(*sample.spans, *found)) if found else sample


def with_thinking_answer(outcome: Outcome, sample: Sample, tokenizer: Any) -> Outcome:
    """Return the outcome with the thinking in the answer, also where the prompt had opened it."""
    prompt = len(sample.tokens)
    spans = [
        dataclasses.replace(span, start=max(span.start, prompt))
        for span in thinking_spans(tokenizer, (*sample.tokens, *outcome.response_tokens))
        if span.stop > prompt
    ]
    return dataclasses.replace(outcome, response_spans=tuple(spans)) if spans else outcome
