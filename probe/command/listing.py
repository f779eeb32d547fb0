"""What there is to run: models, casebooks, analyses, statistics, interventions, workloads, each in one sentence."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import probe
from probe import discovery
from probe.errors import UsageError
from probe.specimens import card_sentence, folders

ROOMS = {
    "models": "",
    "casebooks": "casebooks",
    "published": "published",
    "analyses": "analyses",
    "statistics": "kernels",
    "interventions": "hooks",
    "backends": "backends",
    "workloads": "workloads",
    "engines": "engines",
}
"""What a person calls each room; models are no room but the folders of specimens, and what architectures were tried."""


def listing(room: str | None = None) -> dict[str, dict[str, str]]:
    """Return each member's first sentence, by room and name. Imports none of them, hence no torch.

    Raises UsageError where there is no such room.
    """
    if room is not None and room not in ROOMS:
        close = difflib.get_close_matches(room, ROOMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ROOMS)}"
        raise UsageError(f"there is no list of {room!r}; {hint}")
    found = {name: _members(ROOMS[name]) for name in ([room] if room else ROOMS)}
    if room == "models":
        # Beside all other rooms a hundred architectures would drown what there is to run.
        found["models"] |= _architectures()
    return found


def _members(room: str) -> dict[str, str]:
    if room:
        return {name: discovery.describe(room, name) for name in discovery.names(room)}
    return {name: card_sentence(folder / "README.md") for name, folder in folders().items()}


def _architectures() -> dict[str, str]:
    """Return what the conformance run found of each architecture; read as plain JSON, which takes no library."""
    for root in probe.__path__:
        path = Path(root, "conformance", "models.json")
        if path.is_file():
            break
    else:
        return {}
    found: dict[str, str] = {}
    for each in json.loads(path.read_text(encoding="utf-8"))["architectures"]:
        name = each["name"] if each["backend"] == "huggingface" else f"{each['name']} ({each['backend']})"
        exact = [way for way, of in each["ways"].items() if of["verdict"] == "exact"]
        how = each["verdict"] if len(exact) in (0, len(each["ways"])) else f"{each['verdict']} in {', '.join(exact)}"
        why = f": {each['reason']}" if each["reason"] and how != "exact" else ""
        has = f" [{', '.join(each['has'])}]" if each["has"] else ""
        found[name] = f"{each['names'] or each['name']}, {each['family'] or 'not made'}: {how}{why}{has}"
    return found
