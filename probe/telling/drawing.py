"""A finding's figure, made safe to draw: whatever text is in it is shown, never obeyed."""

from __future__ import annotations

import math
import re
from typing import Any

from probe.finding import Figure
from probe.visible import visible

_ALLOWED = re.compile(r"</?(?:b|i|br|sub|sup|extra)\s*/?>")
_TITLE_HEIGHT = 36


def drawing(figure: Figure) -> dict[str, Any]:
    """Return the figure's `data` and `layout` for plotly.js, without its title, which the page shows as text.

    Tags other than bold, italic, break, sub and superscript become text (plotly makes a live link of `<a href>` and
    draws `<s>` as nothing), hidden characters become visible, and what is not finite becomes null.
    """
    data = _safe(figure.plotly.get("data") or [])
    layout = _safe(figure.plotly.get("layout") or {})
    # A page has one style: the analysis' own colours and axes stay, a template of the maker's default theme goes.
    layout.pop("template", None)
    if layout.pop("title", None) is not None:
        margin = dict(layout.get("margin") or {})
        layout["margin"] = {**margin, "t": max(int(margin.get("t", 80)) - _TITLE_HEIGHT, 24)}
    layout.pop("width", None)
    return {"data": data, "layout": {**layout, "autosize": True}}


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item if key == "bdata" else _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _safe_text(value) if isinstance(value, str) else value


def _safe_text(text: str) -> str:
    pieces, end = [], 0
    for tag in _ALLOWED.finditer(text):
        pieces += [_without_tags(text[end : tag.start()]), tag[0]]
        end = tag.end()
    return "".join([*pieces, _without_tags(text[end:])])


def _without_tags(text: str) -> str:
    # An ampersand stays: what an analysis has escaped already must not be escaped twice.
    return visible(text, keep="\n").replace("<", "&lt;").replace(">", "&gt;")
