"""Tokens put into a sample, and everything that stands behind them moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from probe.errors import UsageError
from probe.hooks.loading.backend import transformers_model_of
from probe.sample import Sample, Span

Text = int | str | Sequence[int]
"""One token id, several, or text for the model's tokenizer."""


def inserted(sample: Sample, at: int, tokens: Sequence[int], name: str) -> Sample:
    """Return the sample with `tokens` before position `at`, a span called `name` (`name_1` where there is one).

    A span that ends before them stays, one that begins there or later moves, one that they fall into holds them. Facts
    that are called `…_positions` move likewise; `num_tokens` counts them.
    """
    if not tokens:
        return sample
    num = len(tokens)

    def moved(span: Span) -> Span:
        start = span.start + num if span.start >= at else span.start
        return Span(span.name, start, span.stop + num if span.stop > at or span.start >= at else span.stop)

    taken = {span.name for span in sample.spans}
    number = 0
    while (own := f"{name}_{number}" if number else name) in taken:
        number += 1
    spans = [moved(span) for span in sample.spans]
    # Spans stand in the order of their first tokens, a whole before its parts.
    behind = next((i for i, span in enumerate(spans) if span.start >= at + num), len(spans))
    spans.insert(behind, Span(own, at, at + num))
    facts = dict(sample.facts)
    for key, value in facts.items():
        if key.endswith("_positions") and isinstance(value, list | tuple):
            facts[key] = [place + num if place >= at else place for place in value]
        elif key == "num_tokens" and value == len(sample):
            facts[key] = value + num
    read = (*sample.tokens[:at], *tokens, *sample.tokens[at:])
    return dataclasses.replace(sample, tokens=read, spans=tuple(spans), text="", facts=facts)


def plain_ids(model: Any, text: Text, who: str, field: str) -> tuple[int, ...]:
    """Return token ids, text without special tokens added.

    Raises `UsageError` naming the intervention and its field for text where the model brings no tokenizer, text of
    words that the tokenizer does not know, and ids that the model does not have.
    """
    if isinstance(text, str):
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise UsageError(f"{who}: {field} is text, and the model brings no tokenizer; give token ids, or load it")
        ids = tuple(map(int, tokenizer(text, add_special_tokens=False)["input_ids"]))
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids and text != getattr(tokenizer, "unk_token", None):
            raise UsageError(f"{who}: the tokenizer does not know {text!r}, which {field} says")
    else:
        ids = (int(text),) if isinstance(text, int) else tuple(map(int, text))
    rows = transformers_model_of(model).get_input_embeddings().num_embeddings
    if wrong := [token for token in ids if not 0 <= token < rows]:
        raise UsageError(f"{who}: {field} has the token ids {wrong}, and the model has {rows} tokens")
    return ids


def beginning(model: Any, sample: Sample) -> int:
    """Return where a sample's text begins: behind the special tokens, such as the beginning-of-sequence token."""
    special = set(getattr(getattr(model, "tokenizer", None), "all_special_ids", None) or ())
    config = transformers_model_of(model).config.get_text_config()
    of_config = getattr(config, "bos_token_id", None)
    special |= set(of_config if isinstance(of_config, list) else [of_config])
    return next((at for at, token in enumerate(sample.tokens) if token not in special), len(sample))


def place_before(sample: Sample, name: str, who: str, field: str) -> int:
    """Return where a span begins; `UsageError` naming the field where the sample has none of that name."""
    try:
        return sample.span(name).start
    except KeyError as error:
        raise UsageError(f"{who}: {field} names a span that a sample has not: {error.args[0]}") from None
