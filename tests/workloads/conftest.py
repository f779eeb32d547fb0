"""Tokenizers made in memory: a word-level one, byte-level ones with and without special tokens, one with metaspaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from probe.workloads import names
from probe.workloads.lexicon import words

PROSE = """Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, I
thought I would sail about a little and see the watery part of the world. The grass is green. The sky is blue. Extract
the value corresponding to the specified key in the JSON object below. Question: What is it? Answer: "Yes", 0123456789.
Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the
numbers afterwards. Memorize and track the chain(s) of variable assignment hidden in the following text.
"""


def _texts() -> list[str]:
    return [PROSE, " ".join(words()), " ".join((*names.FIRST_NAMES, *names.LAST_NAMES, *names.NOUNS))]


def _wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


@cache
def byte_level(vocabulary: int = 1500, special: str = "") -> PreTrainedTokenizerFast:
    """Return a byte-level BPE; `special` is a post-processing template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=special, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return _wrapped(tokenizer, eos_token="</s>")


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Return a BPE in the manner of SentencePiece, with bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))],
        initial_alphabet=[chr(i) for i in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _wrapped(tokenizer, unk_token="<unk>")


@cache
def word_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the lexicon's words, for which all else is unknown."""
    vocabulary = {word: index for index, word in enumerate(("<unk>", "w", "r", "i", "0", "1", *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _wrapped(tokenizer, unk_token="<unk>")


@cache
def every_word() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer that spells what it does not know: one token a character, none unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s|[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=[*map(chr, range(32, 127)), "\n"], show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _wrapped(tokenizer)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_level,
    "bytes, tiny": lambda: byte_level(300),
    "bytes, beginning and end": lambda: byte_level(1500, "<s> $A </s>"),
    "metaspace": metaspace,
    "words apart from spaces": every_word,
}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each kind of tokenizer in turn."""
    return KINDS[request.param]()


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    """A byte-level BPE without special tokens."""
    return byte_level()


@pytest.fixture(scope="session")
def lexicon() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the lexicon's words and of flip-flops, for which all else is unknown."""
    return word_level()
