"""What there is to run: models, casebooks, analyses, statistics, interventions, workloads, each in one sentence."""

from __future__ import annotations

from pathlib import Path

import probe
from probe import discovery
from probe.errors import UsageError

ROOMS = {
    "models": "",
    "casebooks": "casebooks",
    "analyses": "analyses",
    "statistics": "kernels",
    "interventions": "hooks",
    "backends": "backends",
    "workloads": "workloads",
}
"""What a person calls each room; models are no room but the folders of specimens."""


def listing(room: str | None = None) -> dict[str, dict[str, str]]:
    """Return each member's first sentence, by room and name. Imports none of them, hence no torch.

    Raises UsageError where there is no such room.
    """
    if room is not None and room not in ROOMS:
        raise UsageError(f"there is no list of {room!r}; there are {', '.join(ROOMS)}")
    return {name: _members(ROOMS[name]) for name in ([room] if room else ROOMS)}


def _members(room: str) -> dict[str, str]:
    if room:
        return {name: discovery.describe(room, name) for name in discovery.names(room)}
    specimens: dict[str, str] = {}
    for root in probe.__path__:
        for config in sorted(Path(root, "casebooks", "specimens").glob("*/config.json")):
            specimens.setdefault(config.parent.name, _card_sentence(config.parent / "README.md"))
    return specimens


def _card_sentence(card: Path) -> str:
    """Return the first sentence of prose in a model card, past its front matter and headings."""
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    if text.startswith("---"):
        text = text.partition("\n---")[2].partition("\n")[2]
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if line and not line.startswith(("#", "|", "<", "```", "![")):
            end = line.find(". ")
            return line[: end + 1] if end > 0 else line
    return ""
