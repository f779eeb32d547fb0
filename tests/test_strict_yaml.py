"""Casebook text is read as a person reads it, or refused with its place."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import CasebookError
from probe.strict_yaml import MAX_BYTES, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", 0.001),
        ("a: .5", 0.5),
        ("a: 2.", 2.0),
        ("a: -5", -5),
        ("a: no", "no"),
        ("a: 12:30:45", "12:30:45"),
        ("a: 010", "010"),
        ("a: 2026-01-01", "2026-01-01"),
        ("a: true", True),
        ("a: ~", None),
        ("a:", None),
        ("a: '3'", "3"),
        ("a: .", "."),
        ("a: 0x10", "0x10"),
        ("a: .nan", ".nan"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    parsed = parse(text, "f.yaml").value["a"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1", "stands twice"),
        ("a: &x 1\nb: *x", "f.yaml:1:4", "aliases"),
        ("a: 1\n" + "[" * 500, "f.yaml:", ""),
        ("[" * 500, "f.yaml:1:33", "nested deeper"),
        ("a: !!python/object:os.system 1", "f.yaml:1:4", "tag"),
        ("a: [1", "f.yaml:1:", "not valid YAML"),
        ("", "f.yaml:1:1", "empty"),
        ("? [a]\n: 1", "f.yaml:1:3", "key must be a word"),
        ("a: 1e999", "f.yaml:1:4", "out of range"),
        ("a: \x00", "f.yaml:1:1", "not valid YAML"),
        ("a: b: c", "f.yaml:1:5", "not valid YAML"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1", "not valid YAML"),
        ("a: " + "x" * MAX_BYTES, "f.yaml:1:1", "larger than"),
        ('a: "b\\0"', "f.yaml:1:4", "no text has"),
        ('a:\n  - "\\uD800"', "f.yaml:2:5", "no text has"),
        ('"\\uDFFF": 1', "f.yaml:1:1", "no text has"),
        ("a: [" + "1, " * 6_000 + "1]", "f.yaml:1:", "more than 3000 values"),
    ],
)
def test_what_is_refused_is_named_with_its_place(text: str, place: str, what: str) -> None:
    with pytest.raises(CasebookError) as error:
        parse(text, "f.yaml")
    assert place in str(error.value)
    assert what in str(error.value)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(CasebookError, match="not UTF-8 at byte 3"):
        parse(b"a: \xff", "f.yaml")


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(CasebookError, match="aliases"):
        parse(bomb, "f.yaml")


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(codec="ascii", min_codepoint=32)),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text("abcdef", min_size=1), children, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcdef", min_size=1), _values, min_size=1, max_size=4))
def test_what_a_dumper_writes_comes_back(value: dict[str, object]) -> None:
    # default_style quotes every string, so that what is quoted stays text.
    def quoted(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    Dumper.add_representer(str, quoted)
    assert parse(yaml.dump(value, Dumper=Dumper), "f.yaml").value == value


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_gives_a_value_or_a_placed_error(text: str | bytes) -> None:
    try:
        parse(text, "f.yaml")
    except CasebookError as error:
        assert str(error).startswith("f.yaml:")  # noqa: PT017
