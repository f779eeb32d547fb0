"""What a page shows, as plain HTML: for the first answer, before any script has run."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from probe.dashboard.application.panel import Grid, Panel
from probe.visible import visible

_AS: Final = {"Link": "a", "Alert": "div"}
_KEPT: Final = {"className": "class", "href": "href", "id": "id", "title": "title", "value": "value", "max": "max"}


def plain_html(item: Any) -> str:
    """Return an item of a page as HTML, all text escaped; a figure or a table as its title, which comes to life later.

    Of a component its element, its text, and what is said of it stay; the rest belongs to scripts.
    """
    if item is None:
        return ""
    if isinstance(item, list | tuple):
        return "".join(map(plain_html, item))
    if isinstance(item, str | int | float):
        return escape(str(item))
    if isinstance(item, Panel | Grid):
        title = item.figure.title if isinstance(item, Panel) else item.title or item.name.replace("_", " ")
        return f'<section class="explorer-panel"><h2>{escape(visible(title))}</h2></section>'
    said = item.to_plotly_json()
    props = said["props"]
    tag = _AS.get(said["type"], said["type"].lower())
    kept = {_KEPT[name]: value for name, value in props.items() if name in _KEPT and isinstance(value, str | int)}
    kept |= {name: value for name, value in props.items() if name.startswith("aria-") or name == "role"}
    heading = (
        f"<strong>{escape(str(kept.pop('title')))}</strong> " if said["type"] == "Alert" and "title" in kept else ""
    )
    attributes = "".join(f' {name}="{escape(str(value))}"' for name, value in kept.items())
    return f"<{tag}{attributes}>{heading}{plain_html(props.get('children'))}</{tag}>"
