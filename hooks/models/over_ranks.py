"""A model of which every rank has a copy, and which reads one prompt together with the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.ring_attention import ring_attention
from probe.hooks.attention.switch import attached, declared, watchers
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.forward_facts import Phase
from probe.hooks.sequence.logit_slices import can_slice_logits, last_hidden, logit_slices, only_last_row
from probe.kernels.ring import Ring


@dataclass(eq=False)
class ranked_state:
    """A sequence of which every rank holds a stretch."""

    attention: ring_attention
    """This rank's keys and values."""
    num_tokens: int
    """Tokens of the whole sequence so far."""
    prompt: str = ""
    """How the prompt went in."""


class OverRanks(HuggingFaceModel):
    """A decoder whose prompts are spread over ranks: each puts its own stretch through, at its own positions.

    Keys and values go around the ring; logits and residuals stay where their tokens are. The last rank puts decoded
    tokens through, while the others serve their keys; every rank gets the logits. Every rank makes the same calls.
    """

    def __init__(self, model: HuggingFaceModel, ring: Ring) -> None:
        """Take part with this rank's copy; raises `NotReproducible` for what is not spread over ranks, by name."""
        super().__init__(
            model.hf, model.tokenizer, name=model.name, tokenizer_error=model.tokenizer_error, compiled=model.compiled
        )
        self.code, self.ring = model.code, ring
        self._on_call: Any = None
        if reason := _not_spread(model):
            raise NotReproducible(f"{model.name}: not over several ranks, since {reason}")

    def provenance(self) -> dict[str, Any]:
        """What the model is and what runs it, with the number of ranks."""
        return super().provenance() | {"ranks": self.ring.size}

    def stretch(self, num_tokens: int) -> tuple[int, int]:
        """Return which positions of a prompt this rank has."""
        rank, size = self.ring.rank, self.ring.size
        return num_tokens * rank // size, num_tokens * (rank + 1) // size

    @contextmanager
    def calls(self, on_call: Any, on_residual: Any = None, on_recurrence: Any = None) -> Iterator[None]:
        """Within the block `prefill` and `step` hand out this rank's calls, with log-sum-exps over all keys."""
        if on_residual is not None or on_recurrence is not None:
            raise UsageError("residuals and recurrent states over several ranks: not supported")
        before, self._on_call = self._on_call, on_call
        try:
            yield
        finally:
            self._on_call = before

    def prefill(  # type: ignore[override]
        self,
        tokens: Sequence[int],
        *,
        chunk_tokens: int = 2048,
        on_logits: Any = None,
        cache: str = "device",
        whole: int | None = None,
    ) -> ranked_state:
        """Put this rank's stretch of a prompt through, all at once whatever `chunk_tokens` says.

        `on_logits` gets the logits of its tokens alone. Raises `UsageError` for fewer tokens than ranks, and for a
        cache that is not on the device.
        """
        if len(tokens) < self.ring.size:
            raise UsageError(f"a prompt of {len(tokens)} tokens before its last, for {self.ring.size} ranks")
        if cache != "device":
            raise UsageError("over several ranks keys and values stay on the device")
        state = ranked_state(ring_attention(self.ring), 0)
        start, stop = self.stretch(len(tokens))
        self._forward(state, tokens[start:stop], start, "prefill", on_logits)
        state.num_tokens = len(tokens)
        return state

    def step(  # type: ignore[override]
        self, state: ranked_state, tokens: Sequence[int], *, phase: Phase = "decode"
    ) -> Float[Tensor, "token vocabulary"]:
        """Put tokens through after those of `state` on the last rank; return the logits at each, on every rank."""
        last, logits = self.ring.size - 1, None
        if self.ring.rank == last:
            logits = self._forward(state, tokens, state.num_tokens, phase, None)
        else:
            state.attention.on_call = self._on_call
            with torch.no_grad():
                state.attention.serve()
        state.num_tokens += len(tokens)
        own = torch.tensor([0 if logits is None else logits.shape[1]])
        width = self.ring.everywhere(own, [1] * self.ring.size)[last]
        room = torch.empty(len(tokens), int(width), device=self.device) if logits is None else logits.float()
        for rank in range(last):
            passed = self.ring.pass_on(room, last, rank)
            room = room if passed is None else passed
        return room

    def mark(self, state: ranked_state) -> tuple[int, int]:  # type: ignore[override]
        """Remember where `state` stands."""
        return state.num_tokens, state.attention.num_kept

    def rollback(self, state: ranked_state, to: tuple[int, int]) -> None:  # type: ignore[override]
        """Take `state` back to where `mark` was taken."""
        state.num_tokens = to[0]
        state.attention.forget(to[1])

    @torch.no_grad()
    def _forward(
        self,
        state: ranked_state,
        tokens: Sequence[int],
        start: int,
        phase: Phase,
        on_logits: Any,
    ) -> Tensor | None:
        if watchers(self.hf):
            raise UsageError(f"{self.name}: interventions over several ranks: not supported")
        given = torch.tensor(list(tokens), dtype=torch.long, device=self.device)
        position = torch.arange(start, start + len(given), device=self.device)
        state.attention.start, state.attention.on_call = start, self._on_call
        options = {"input_ids": given[None], "position_ids": position[None], "use_cache": False}
        kept = last_hidden() if on_logits is not None and can_slice_logits(self.hf) else None
        with uncompiled(self.hf), attached(self.hf, state.attention), declared(self.hf, phase, given):
            if kept is None:
                logits: Tensor = self.hf(**options).logits[0]
            else:
                with only_last_row(self.hf, kept):
                    self.hf(**options)
        if kept is not None:
            for at, rows in logit_slices(self.hf, kept, given):
                on_logits(start + at, rows)
            return None
        if on_logits is not None:
            on_logits(start, logits)
        return logits


def _not_spread(model: HuggingFaceModel) -> str | None:
    """Return why a model's prompts cannot be spread over ranks; None where they can."""
    if type(model) is not HuggingFaceModel:
        return f"{type(model).__name__} is not a decoder of transformers by itself"
    config = model.hf.config.get_text_config()
    if model.recurrent_layers or len(model.attention_layers) != model.num_layers:
        return "some of its layers do not attend, and what recurs goes from token to token"
    if "position_ids" not in inspect.signature(model.hf.forward).parameters:
        return "its forward takes no positions"
    for rope in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        kinds = [rope, *rope.values()] if isinstance(rope, dict) else []
        if any(isinstance(each, dict) and each.get("rope_type") in ("dynamic", "longrope") for each in kinds):
            return "its rotary frequencies depend on the length of what goes through"
    return None
