"""What a person asks of a model on the spot: a prompt, and what is done to the model while it reads it.

Said by the explorer, done by a process of its own (`probe.live`); nothing in it names a file, a model or code.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from probe.errors import UsageError

MOST_CHARACTERS: Final = 200_000
"""Characters of a prompt, at most."""
MOST_TOKENS: Final = 32_768
"""Tokens of a prompt, at most; and never more than the model can read."""
MOST_ANSWER_CHARACTERS: Final = 2_000
"""Characters of a right answer, at most."""
MOST_NEW_TOKENS: Final = 256
"""Tokens that are decoded, at most."""
MOST_FIELD_CHARACTERS: Final = 20_000
"""Characters of an intervention's fields, at most."""
MOST_LAYERS: Final = 8
"""Layers whose queries and keys are kept, at most."""
MOST_HEADS: Final = 1_024
"""Heads that are named, at most."""

Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WhatIf:
    """One thing to try: a prompt, read by the model as it is and, where something is done to it, once more so."""

    prompt: str
    """The text; it gets the special tokens that the tokenizer adds."""
    answer: str = ""
    """The right answer, as it follows the prompt; empty where there is none."""
    num_new_tokens: int = 16
    """How many tokens are decoded."""
    heads: Heads = ()
    """Heads that are removed (`ablate_heads`), as layer and head; () for none."""
    intervention: str = ""
    """Name of an intervention; empty for none. Either this or heads."""
    fields: str = ""
    """The intervention's fields, as YAML or JSON."""
    layers: tuple[int, ...] = ()
    """Layers whose queries and keys are kept, so that single tokens can be seen."""

    def __post_init__(self) -> None:
        """Raise UsageError, naming the field, for what cannot be asked."""
        for name, most in (
            ("prompt", MOST_CHARACTERS),
            ("answer", MOST_ANSWER_CHARACTERS),
            ("intervention", 100),
            ("fields", MOST_FIELD_CHARACTERS),
        ):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise UsageError(f"{name}: expected text")
            if len(value) > most:
                raise UsageError(f"{name}: {len(value):,} characters; at most {most:,} are taken")
        if not self.prompt.strip():
            raise UsageError("prompt: type what the model is to read")
        if type(self.num_new_tokens) is not int or not 1 <= self.num_new_tokens <= MOST_NEW_TOKENS:
            raise UsageError(f"tokens to decode: expected a whole number from 1 to {MOST_NEW_TOKENS}")
        if self.heads and self.intervention:
            raise UsageError("heads: name heads or an intervention, not both")
        if len(self.heads) > MOST_HEADS:
            raise UsageError(f"heads: {len(self.heads):,} are named; at most {MOST_HEADS:,} are taken")
        if len(self.layers) > MOST_LAYERS:
            raise UsageError(
                f"layers: {len(self.layers)} are named; queries and keys of at most {MOST_LAYERS} are kept"
            )
        numbers = [*self.layers, *(number for pair in self.heads for number in pair)]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise UsageError("layers and heads are whole numbers from 0")
        if self.fields.strip() and not self.intervention:
            raise UsageError("fields: name the intervention whose fields these are")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; `from_json` turns them back."""
        value = dataclasses.asdict(self)
        return {**value, "heads": [list(pair) for pair in self.heads], "layers": list(self.layers)}

    @classmethod
    def from_json(cls, value: Any) -> WhatIf:
        """Rebuild it from `to_json`'s result; raises UsageError for anything else."""
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(value, Mapping) or not set(value) <= set(known) or "prompt" not in value:
            raise UsageError(f"a request has the fields {', '.join(known)} and no others")
        given = dict(value)
        for name in ("heads", "layers"):
            if not isinstance(given.get(name, []), list):
                raise UsageError(f"{name}: expected a list")
        if any(not isinstance(pair, list) or len(pair) != 2 for pair in given.get("heads", [])):
            raise UsageError("heads: expected pairs of layer and head")
        given["heads"] = tuple((pair[0], pair[1]) for pair in given.get("heads", []))
        given["layers"] = tuple(given.get("layers", []))
        return cls(**given)


def read_heads(text: str) -> Heads:
    """Return the heads that a list such as `2:9, 2:13` names; raises UsageError for what is no layer:head."""
    heads = []
    for part in filter(None, re.split(r"[\s,;]+", text)):
        if not (found := re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", part)):
            raise UsageError(f"heads: {part[:40]!r} is no head; write layer:head, such as 2:9, 2:13")
        heads.append((int(found[1]), int(found[2])))
    return tuple(dict.fromkeys(heads))


def read_layers(text: str) -> tuple[int, ...]:
    """Return the layers that a list such as `0, 2` names; raises UsageError for what is no number."""
    layers = []
    for part in filter(None, re.split(r"[\s,;]+", text)):
        if not re.fullmatch(r"[0-9]{1,5}", part):
            raise UsageError(f"layers: {part[:40]!r} is no layer; write numbers, such as 0, 2")
        layers.append(int(part))
    return tuple(sorted(set(layers)))
