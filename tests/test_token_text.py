"""What a trace says of its tokens' text is what a tokenizer reads, put together again."""

from __future__ import annotations

from pathlib import Path

import pytest

import probe
from probe.errors import StoreCorrupt
from probe.sample import Sample
from probe.storage.store import MemoryStore
from probe.token_text import token_text


@pytest.fixture(scope="module")
def model() -> object:
    return probe.load("needle")


def test_a_trace_reads_as_its_prompt(model: object, tmp_path: Path) -> None:
    text = "It is the magic number for Bogota. Nobody else had time."
    trace = probe.trace(model, text, statistics=["attention_map"], out=tmp_path / "trace")
    known = trace.token_text
    assert set(trace.sample.tokens) <= set(known)
    assert set(trace.outcome.response_tokens) <= set(known)
    assert "".join(known[token] for token in trace.sample.tokens).endswith(text)


def test_a_private_trace_has_none(model: object) -> None:
    trace = probe.trace(model, "It is dark.", statistics=["attention_map"], private=True)
    assert trace.token_text == {}


class Bytes:
    """A tokenizer whose token i is byte i, but that drops a space in front, as SentencePiece's do."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        return bytes(ids).decode(errors="replace").removeprefix(" ")


def test_the_space_of_a_token_is_its_own() -> None:
    text = "a<b> c\n\x1b"
    assert token_text(Bytes(), text.encode()) == {ord(c): c for c in text}
    assert token_text(Bytes(), [0xE2]) == {0xE2: "\ufffd"}
    assert token_text(None, [1]) == {}


@pytest.mark.parametrize("text", [{1: "<s>", 20: "\ud800 \u202e</script>"}, {}])
def test_any_text_is_kept(text: dict[int, str]) -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1, 20))) as writer:
        writer.write_token_text(text)
        writer.commit()
    assert store.trace("u").token_text == text


@pytest.mark.parametrize("damaged", [b"[]", b'{"x": "a"}', b"{"])
def test_what_says_nothing_such_is_named(damaged: bytes) -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1,))) as writer:
        writer._files.write("token_text.json", damaged)
        writer.commit()
    with pytest.raises(StoreCorrupt, match=r"token_text\.json"):
        _ = store.trace("u").token_text
