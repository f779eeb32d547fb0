"""Whether a model that goes on from its cache computes what it would compute in one forward."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention_interface import name_of
from probe.hooks.attention_switch import resting
from probe.hooks.placement import input_device

_NUM_TOKENS = 6
# Rounding of a whole small forward, and far from what a lost state does.
_ALLOWED_EPS = 32.0

_off: weakref.WeakKeyDictionary[PreTrainedModel, dict[bool, float]] = weakref.WeakKeyDictionary()


def check_continuation(model: PreTrainedModel, num_new: int) -> None:
    """Refuse a model whose logits for `num_new` tokens on its cache are not those of one forward.

    Some recurrent and hybrid models take up their state for a single new token only, or not at all, and say nothing.
    Tried on six tokens the first time, for one new token and for several apart, then remembered. Raises
    `NotReproducible` naming the model.
    """
    several = num_new > 1
    known = _off.setdefault(model, {})
    if several not in known:
        known[several] = _difference(model, 3 if several else 1)
    if known[several] > _ALLOWED_EPS * torch.finfo(model.dtype).eps:
        what = "several tokens" if several else "a token"
        raise NotReproducible(
            f"{name_of(model)}: {what} put through on its cache give other logits than in one forward (off by "
            f"{known[several]:.2g} of the largest), so a prompt has to go through in one chunk"
            + (", and a token at a time after it" if several else ", and nothing can follow it")
        )


@torch.no_grad()
def _difference(model: PreTrainedModel, num_new: int) -> float:
    """Largest difference of the last logits, over the largest logit; what is not finite is left out."""
    # The first ids often stand for padding and the like.
    tokens = torch.arange(3, 3 + _NUM_TOKENS, device=input_device(model))[None]
    tokens %= model.config.get_text_config().vocab_size
    cache = DynamicCache(config=model.config)
    first = _NUM_TOKENS - num_new
    with resting(model):
        expected = _last(model(input_ids=tokens, use_cache=False))
        model(input_ids=tokens[:, :first], past_key_values=cache, use_cache=True)
        found = _last(model(input_ids=tokens[:, first:], past_key_values=cache, use_cache=True))
    comparable = expected.isfinite() & found.isfinite()
    if not bool(comparable.any()):
        return 0.0
    expected, found = expected[comparable], found[comparable]
    return float((expected - found).abs().amax() / expected.abs().amax().clamp_min(1e-30))


def _last(output: Any) -> Tensor:
    logits: Tensor = output.logits[0, -1]
    return logits.double()
