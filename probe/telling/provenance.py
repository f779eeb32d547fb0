"""Everything that is needed to play a run again, in groups, as its record says it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from probe.telling.stages import command_of
from probe.telling.summary import model_of, named

LABELS: Final = {
    "model": "Model",
    "revision": "Revision",
    "weights_sha256": "Weights, SHA-256",
    "tokenizer_sha256": "Tokenizer, SHA-256",
    "dtype": "Number format",
    "device": "Device",
    "attention_implementation": "Attention implementation",
    "trust_remote_code": "Code of the model's own was run",
    "compared_with_eager": "Held against the model's own eager attention",
}
"""What the first lines of a provenance are called."""

_MODEL: Final = ("model", "backend", "architecture", "revision", "weights_sha256", "adapters", "quantisation")
_TEXT: Final = ("tokenizer_sha256", "tokenisation")


@dataclass(frozen=True)
class Group:
    """Some facts that belong together."""

    title: str
    rows: tuple[tuple[str, str], ...]
    """What is said, and what it is."""


def groups(record: Mapping[str, Any]) -> list[Group]:
    """Return what a run's record says of where its numbers come from; a group of which nothing is said is left out."""
    known = _mapping(record.get("provenance"))
    casebook = _mapping(record.get("casebook"))
    first = {*_MODEL, *_TEXT, "versions", "seed", "casebook"}
    identity = _mapping(record.get("identity"))
    own = {"longcontext-probe": identity.get("longcontext-probe")}
    rules = record.get("success_rules")
    rules = "; ".join(str(rule) for rule in rules if rule) if isinstance(rules, list) else ""
    found = [
        Group("Model", tuple(flat({key: known.get(key) for key in _MODEL}))),
        Group("The model's card", tuple(card(record))),
        Group("Tokenizer", tuple(flat({key: known.get(key) for key in _TEXT}))),
        Group(
            "Casebook",
            tuple(
                flat(
                    {
                        "name": casebook.get("name", known.get("casebook")),
                        "question": casebook.get("question"),
                        "seed": casebook.get("seed", known.get("seed")),
                        "workload": json.dumps(casebook["workload"], ensure_ascii=False)
                        if casebook.get("workload")
                        else None,
                        "an answer counts as right": rules,
                    }
                )
            ),
        ),
        Group("Versions", tuple(flat(own | dict(_mapping(known.get("versions")))))),
        Group("How it was read", tuple(flat({key: value for key, value in known.items() if key not in first}))),
        Group("What makes it this run and no other", tuple(flat(identity))),
    ]
    return [group for group in found if group.rows]


def again(record: Mapping[str, Any]) -> str:
    """Return the command that plays a run again: the one on record, else the shortest that names it."""
    words = ["probe", "run", named(record.get("casebook")), "--model", model_of(record)]
    return command_of(record) or shlex.join(words)


def casebook_yaml(record: Mapping[str, Any]) -> str:
    """Return the casebook as YAML, with what options set over it, for `probe run`; empty where there is none."""
    casebook = record.get("casebook")
    if not isinstance(casebook, Mapping):
        return ""
    text: str = yaml.safe_dump(_said(casebook), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    return text


def card(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the model's card says of it, without the figures that it was published with."""
    said = _mapping(record.get("model_card"))
    return [(k, v) for k, v in flat({k: v for k, v in said.items() if not isinstance(v, Mapping)}) if len(v) < 300]


def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield what a mapping says, row by row: what is nested with its names joined, what is empty left out."""
    for key, item in value.items():
        label = f"{before}{LABELS.get(key, key) if not before else key}".replace("_", " ")
        if isinstance(item, Mapping):
            yield from flat(item, f"{label} · ")
        elif item is not None and item not in ("", []):
            yield label, plain(item)


def plain(item: object) -> str:
    """Return a value as somebody would write it."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, list | tuple) and all(isinstance(part, str | int | float) for part in item):
        return ", ".join(str(part) for part in item)
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _said(value: Any) -> Any:
    """Return a value without the fields that say nothing, which are so by default."""
    if isinstance(value, Mapping):
        return {str(key): _said(item) for key, item in value.items() if item is not None}
    return [_said(item) for item in value] if isinstance(value, list) else value
