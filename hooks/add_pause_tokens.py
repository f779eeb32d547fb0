"""Tokens that say nothing, between the question and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from probe.errors import UsageError
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.inserted import Text, inserted, place_before, plain_ids
from probe.sample import Sample


@dataclass(frozen=True)
class add_pause_tokens(ChangeOfPrompt):
    """Let the model read `num_tokens` tokens that say nothing before it answers: `with add_pause_tokens(10)(model):`.

    Goyal et al. (2024, arXiv 2310.02226) append learned pause tokens to the prompt and find them of use where the model
    was trained with them; Pfau et al. (2024, arXiv 2404.15758) train with dots. A model that was trained with neither
    is asked here what the mere room does. The tokens are a span called `pause`, and answers begin behind them.
    """

    num_tokens: int = 10
    """How often the token is repeated; Goyal et al. append 10 or 50."""
    token: Text = "."
    """A token id, several, or text, of which the whole is repeated; dots are Pfau et al.'s."""
    before: str | None = None
    """Name of the span that they stand before; None for the end of the prompt, behind a chat template's own opening of
    the answer."""

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise UsageError(f"add_pause_tokens: num_tokens is at least 1, not {self.num_tokens}")
        if not isinstance(self.token, int | str):
            object.__setattr__(self, "token", tuple(map(int, self.token)))
        if self.token in ("", ()):
            raise UsageError("add_pause_tokens: token is empty")

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        ids = plain_ids(model, self.token, "add_pause_tokens", "token")
        if not ids:
            raise UsageError(f"add_pause_tokens: the tokenizer makes no token of {self.token!r}, which token says")
        at = len(sample) if self.before is None else place_before(sample, self.before, "add_pause_tokens", "before")
        return inserted(sample, at, ids * self.num_tokens, "pause")
