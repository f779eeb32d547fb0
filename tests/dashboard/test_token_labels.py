"""Tokens show as the text that they are, whatever that text is."""

from __future__ import annotations

import html
from typing import Any

import pytest

from probe.analyses.measures.token_labels import MOST_CHARACTERS, seen, token_labels
from probe.dashboard.application.opened import Opened
from tests.dashboard.conftest import HOSTILE
from tests.dashboard.test_attention_page import content


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<s>", "<s>"),
        (" the\n", "␣the↵"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("&lt;", "&lt;"),
    ],
)
def test_nothing_in_a_token_hides(text: str, wanted: str) -> None:
    assert seen(text) == wanted


def test_each_position_has_its_own_token(small: Any) -> None:
    labels = token_labels(Opened([small.path]).run().trace("full"), (10, 266), 1)
    assert labels == [seen(HOSTILE[token]) for token in small.tokens[10:266]]


def test_a_cell_of_many_tokens_shows_its_first_and_that_there_are_more(long: Any) -> None:
    labels = token_labels(Opened([long.path]).run().trace("long"), (0, 131_072), 512)
    assert len(labels) == 256
    assert labels[0].startswith("␣w0␣w7919␣w15838")
    assert all(len(label) <= MOST_CHARACTERS and label.endswith("…") for label in labels)


def test_ticks_and_names_are_escaped_for_plotly(small: Any) -> None:
    page = content(small.path, "?unit=full&layer=0&queries=280-300&keys=280-300")
    layout = page["panel"].figure.plotly["layout"]
    words = [seen(HOSTILE[token]) for token in small.tokens[280:]]
    short = [word if len(word) <= 12 else word[:11] + "…" for word in words]
    assert [html.unescape(tick) for tick in layout["xaxis"]["ticktext"]] == short
    assert not any("<" in tick for tick in layout["xaxis"]["ticktext"])
    assert [note["text"] for note in layout["annotations"]] == ["&lt;b&gt;q&lt;/b&gt;"] * 2


def test_a_token_without_text_shows_as_its_id(small: Any) -> None:
    labels = token_labels(Opened([small.path]).run().trace("bare"), (0, 256), 1)
    assert labels == [f"⟨token {token}⟩" for token in small.tokens[:256]]
    assert "ids" not in content(small.path, "?unit=private")["notes"]
