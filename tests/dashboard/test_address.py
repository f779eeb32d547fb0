"""An address says a view, and a view its address; what means nothing is named."""

from __future__ import annotations

import pytest

from probe.dashboard.application.address import LAYER, RUN, Control, number, read_address, write_address
from probe.errors import UsageError

CONTROLS = (
    RUN,
    LAYER,
    Control("scale", "Colour", "log", "choice", ("log", "linear")),
    Control("sink", "Sink", "on", "switch"),
    Control("find", "Find", kind="text"),
)


def test_what_is_left_out_is_as_by_default() -> None:
    plain = {"run": "", "layer": "", "scale": "log", "sink": "on", "find": ""}
    assert read_address(None, CONTROLS) == read_address("", CONTROLS) == read_address("?", CONTROLS) == plain
    assert write_address(plain, CONTROLS) == ""


@pytest.mark.parametrize("text", ["</script>", "a&b=c?d#e", "ü \u202e", "+ %41"])
def test_a_view_goes_through_its_address_unchanged(text: str) -> None:
    view = {"run": text, "layer": "3", "scale": "linear", "sink": "off", "find": text}
    assert read_address(write_address(view, CONTROLS), CONTROLS) == view


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("?zoom=1", "'zoom'.*it can have run, layer, scale, sink, find"),
        ("?scale=cubic", "scale='cubic'; it is log or linear"),
        ("?sink=yes", "on or off"),
        ("?" + "&".join(f"p{i}=1" for i in range(50)), "more than 32"),
    ],
)
def test_what_means_nothing_is_named(search: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_address(search, CONTROLS)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "١", "9" * 11])
def test_a_number_is_a_whole_number(text: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        number({"layer": text}, "layer")
    assert number({"layer": ""}, "layer") is None
    assert number({"layer": "12"}, "layer") == 12
