"""Logits of a chunk a few tokens at a time, by the model's own head over slices of the last hidden states."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import resting
from probe.hooks.loading.placement import input_device

LOGIT_TOKENS = 256
"""Tokens whose logits are held at once."""

_sliced: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class last_hidden:
    """What the model's body put out last."""

    output: ModelOutput | None = None
    """Its whole output; None before it ran."""


@contextmanager
def only_last_row(model: PreTrainedModel, kept: last_hidden) -> Iterator[None]:
    """Within the block the model's head sees the last token alone, and `kept` gets what the body put out."""

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        if _hidden(output) is None:
            return output
        kept.output = output
        return _with_hidden(output, output.last_hidden_state[:, -1:])

    hook = model.base_model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def logit_slices(
    model: PreTrainedModel, kept: last_hidden, tokens: Tensor, *, first: int = 0, slice_tokens: int = LOGIT_TOKENS
) -> Iterator[tuple[int, Float[Tensor, "token vocabulary"]]]:
    """Yield `(start, logits)` for slices of one sample's tokens, from the token `first` of them on.

    The model's own forward makes them, with what its body put out in the place of its body, so that a softcap or a
    scale on the logits is applied as the model applies it.
    """
    assert kept.output is not None
    hidden = kept.output.last_hidden_state
    for start in range(first, hidden.shape[1], slice_tokens):
        rows = slice(start, start + slice_tokens)
        given = _with_hidden(kept.output, hidden[:, rows])
        with resting(model), _replaced(model.base_model, given):
            # Held by nothing here, so that the slice is gone when the next one is made.
            made = [model(input_ids=tokens[None, rows], use_cache=False).logits[0]]
        yield start, made.pop()


@torch.no_grad()
def can_slice_logits(model: PreTrainedModel) -> bool:
    """Whether the logits of slices are those of the whole: tried on three tokens the first time, then remembered."""
    if model not in _sliced:
        _sliced[model] = _agrees(model)
    return _sliced[model]


def check_last_row(model: PreTrainedModel, sliced: Tensor, whole: Tensor) -> None:
    """Refuse a model whose head gives one row other logits among few rows than by itself, beyond rounding."""
    if not _equal(sliced, whole):
        raise NotReproducible(
            f"{name_of(model)}: its logits at a token depend on the tokens that they are computed with"
        )


def _agrees(model: PreTrainedModel) -> bool:
    if model.base_model is model:
        return False
    # An id that stands for padding makes some models warn.
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    one, other = [token for token in range(4) if token != padding][:2]
    tokens, kept = torch.tensor([one, other, one], device=input_device(model)), last_hidden()
    with resting(model):
        expected = model(input_ids=tokens[None], use_cache=False).logits[0]
        with only_last_row(model, kept):
            last = model(input_ids=tokens[None], use_cache=False).logits[0]
    if kept.output is None or last.shape != expected[-1:].shape or not _equal(last[0], expected[-1]):
        return False
    return all(
        _equal(logits, expected[start : start + 2])
        for start, logits in logit_slices(model, kept, tokens, slice_tokens=2)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    # A product of matrices rounds by the number of its rows.
    finite = other.masked_fill(~other.isfinite(), 0)
    allowed = 8 * torch.finfo(other.dtype).eps * float(finite.abs().amax())
    return torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True)


def _hidden(output: Any) -> Tensor | None:
    hidden = getattr(output, "last_hidden_state", None)
    return hidden if isinstance(output, ModelOutput) and isinstance(hidden, Tensor) and hidden.ndim == 3 else None


def _with_hidden(output: ModelOutput, hidden: Tensor) -> ModelOutput:
    made: ModelOutput = type(output)(**{**output, "last_hidden_state": hidden})
    return made


@contextmanager
def _replaced(body: nn.Module, output: ModelOutput) -> Iterator[None]:
    """Within the block the body computes nothing and puts out `output`."""
    before = vars(body).get("forward")
    body.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del body.forward
        if before is not None:
            body.forward = before
