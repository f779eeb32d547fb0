"""Whether a model that goes on from what it keeps computes what one forward would, and what that takes."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of, text_decoder
from probe.hooks.attention.switch import resting
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.loading.placement import input_device
from probe.hooks.loading.quantisation import quantisation
from probe.hooks.recurrence.convolution_from_state import convolution_from_state
from probe.hooks.recurrence.scan_from_state import scan_from_state
from probe.hooks.sequence.continuation_repair import continuation_repair
from probe.hooks.sequence.decoding_state import empty_state, put_through, recurs
from probe.hooks.sequence.given_positions import given_positions

_REPAIRS: tuple[continuation_repair, ...] = (scan_from_state(), convolution_from_state(), given_positions())
# Rounding of a whole small forward, which heads that choose sharply enlarge; a lost state is far beyond either.
_ALLOWED_EPS = 32.0
_ALLOWED = 1e-4
# In a model that recurs rounding grows from token to token, by how much is measured.
_ALLOWED_NOISE = 4.0
# transformers' linear attention goes in blocks of 64 tokens wherever no configuration says otherwise.
_BLOCK_TOKENS = 64
_LARGEST_BLOCK_TOKENS = 512

_log = logging.getLogger("probe")
_known: weakref.WeakKeyDictionary[PreTrainedModel, dict[bool, continuation]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class continuation:
    """How a model goes on with one more token, or with several."""

    repairs: tuple[continuation_repair, ...] = ()
    """What has to be done for it."""
    off_by: float = 0.0
    """How far it is then from one forward over everything, as a share of the largest value."""
    works: bool = True
    """Whether that is no more than rounding."""
    failure: str = ""
    """What transformers said where a forward on what the model keeps failed."""
    own_step: bool = False
    """Whether the model itself computes a single token otherwise than several, though it goes on from its state."""

    @property
    def wrong(self) -> str:
        """What is wrong with it, after "several tokens"."""
        if self.failure:
            return f"fail ({self.failure})"
        return f"give other logits than in one forward (off by {self.off_by:.2g} of the largest)"


def continuation_of(model: PreTrainedModel, *, several: bool) -> continuation:
    """Try on a few tokens, once, whether the model goes on rightly with several new tokens (or with a single one).

    A model that keeps recurrent states is tried with pieces that cross the blocks that its layers compute in.
    """
    known = _known.setdefault(model, {})
    if several not in known:
        known[several] = _tried(model, several)
        _say(model, several, known[several])
    return known[several]


def check_continuation(model: PreTrainedModel, num_new: int) -> tuple[continuation_repair, ...]:
    """Return what has to be done around a forward of `num_new` tokens on what the model keeps.

    Some recurrent and hybrid models take up their state for a single new token only, or not at all, and say nothing.
    Raises `NotReproducible` naming the model where nothing known helps.
    """
    found = continuation_of(model, several=num_new > 1)
    if not found.works:
        what = "several tokens" if num_new > 1 else "a token"
        raise NotReproducible(
            f"{name_of(model)}: {what} put through on its cache {found.wrong}, so a prompt has to go through in one "
            + ("chunk, and a token at a time after it" if num_new > 1 else "chunk, and nothing can follow it")
        )
    return found.repairs


def _tried(model: PreTrainedModel, several: bool) -> continuation:
    there = [each for each in _REPAIRS if each.applies(model)]
    needed = tuple(each for each in there if each.always)
    limited = not several and any(_limits(model))
    with _unlimited(model) if limited else nullcontext():
        found = _compared(model, several, needed)
        if not found.works and len(there) > len(needed):
            with_all = _compared(model, several, tuple(there))
            found = with_all if with_all.works else found
    if not (found.works and limited):
        return found
    return replace(found, off_by=_compared(model, several, found.repairs).off_by, own_step=True)


def _compared(model: PreTrainedModel, several: bool, repairs: tuple[continuation_repair, ...]) -> continuation:
    try:
        with allocation_errors():
            off_by, allowed = _difference(model, _pieces(model, several), repairs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # transformers' cache of a window of one token keeps all tokens.
        return continuation(repairs, float("inf"), works=False, failure=str(error).partition("\n")[0])
    return continuation(repairs, off_by, off_by <= allowed)


def _pieces(model: PreTrainedModel, several: bool) -> list[int]:
    """How many tokens go through at once, one forward after the other."""
    if not recurs(model):
        return [3, 3] if several else [5, 1]
    block = _BLOCK_TOKENS
    for module in text_decoder(model).modules():
        for name in ("chunk_size", "block_size"):
            size = getattr(module, name, None)
            block = max(block, size) if isinstance(size, int) and size <= _LARGEST_BLOCK_TOKENS else block
    # Shorter and longer than a convolution's kernel, within a block and across its end.
    return [block + 3, 2, 5, block + 1] if several else [block + 3, *[1] * 5]


@torch.no_grad()
def _difference(
    model: PreTrainedModel, pieces: Sequence[int], repairs: Sequence[continuation_repair] = ()
) -> tuple[float, float]:
    """Largest difference at any token after the first piece, and what rounding explains; over the largest value.

    What is not finite is left out.
    """
    eps = torch.finfo(model.dtype).eps
    # The first ids often stand for padding and the like.
    tokens = torch.arange(3, 3 + sum(pieces), device=input_device(model))
    tokens %= model.config.get_text_config().vocab_size
    with resting(model):
        whole = _outputs(model, [tokens], ())
        found = _outputs(model, list(tokens.split(list(pieces))), repairs)
        off_by = _largest(whole, found, pieces[0])
        is_quantised = quantisation(model) is not None
        if not recurs(model) and not is_quantised:
            return off_by, max(_ALLOWED_EPS * eps, _ALLOWED)
        # Quantised products take half precision and round it to a few bits: a last bit may become a step.
        with _perturbed(model, max(eps, torch.finfo(torch.float16).eps) if is_quantised else eps):
            noise = _largest(whole, _outputs(model, [tokens], ()), pieces[0])
    return off_by, max(_ALLOWED_NOISE * noise, _ALLOWED_EPS * eps if is_quantised else 0.0, _ALLOWED)


def _outputs(
    model: PreTrainedModel, pieces: Sequence[Tensor], repairs: Sequence[continuation_repair]
) -> Float[Tensor, "token channel"]:
    """What comes out of the last layer, or the logits where that is not to be had; alone without a cache."""
    state, found, last = empty_state(model), [], list[Tensor]()

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        last[:] = [hidden] if isinstance(hidden, Tensor) and hidden.ndim == 3 else []

    # Before others' hooks: who wants the last row's logits alone takes the rest away.
    hook = model.base_model.register_forward_hook(keep, prepend=True)
    try:
        for piece in pieces:
            if len(pieces) == 1:
                output: Any = model(input_ids=piece[None], use_cache=False)
            else:
                output = put_through(model, state, piece, repairs if state.num_tokens > 0 else ())
            found.append((last or [output.logits]).pop()[0])
    finally:
        hook.remove()
    return torch.cat(found).double()


def _largest(expected: Tensor, found: Tensor, first: int) -> float:
    assert expected.shape == found.shape
    assert len(found) > first
    expected, found = expected[first:], found[first:]
    comparable = expected.isfinite() & found.isfinite()
    if not bool(comparable.any()):
        return 0.0
    expected, found = expected[comparable], found[comparable]
    return float((expected - found).abs().amax() / expected.abs().amax().clamp_min(1e-30))


@contextmanager
def _perturbed(model: PreTrainedModel, eps: float) -> Iterator[None]:
    """Within the block every embedded word is off by one rounding, up or down."""
    random = torch.Generator().manual_seed(0)

    def perturb(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        signs = torch.randint(0, 2, output.shape, generator=random) * 2 - 1
        return output * (1 + eps * signs.to(output))

    hook = model.get_input_embeddings().register_forward_hook(perturb)
    try:
        yield
    finally:
        hook.remove()


def _limits(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The mixers that limit their step size, which transformers does for several tokens and not for one."""
    for module in text_decoder(model).modules():
        limit = getattr(module, "time_step_limit", None)
        if isinstance(limit, tuple | list) and tuple(limit) != (0.0, float("inf")):
            yield module


@contextmanager
def _unlimited(model: PreTrainedModel) -> Iterator[None]:
    with ExitStack() as stack:
        for module in list(_limits(model)):
            stack.callback(setattr, module, "time_step_limit", module.time_step_limit)
            module.time_step_limit = (0.0, float("inf"))  # type: ignore[assignment]
        yield


def _say(model: PreTrainedModel, several: bool, found: continuation) -> None:
    what = "several tokens go" if several else "a token goes"
    if found.repairs and found.works:
        words = ", ".join(each.words for each in found.repairs)
        _log.info("%s: %s through on what it keeps with %s", name_of(model), what, words)
    if found.own_step:
        _log.warning(
            "%s: for a single token transformers does not limit the step size of its state as it does for several, in "
            "generate as here: decoded tokens are the model's own, and may differ from one forward over everything (by "
            "%.2g of the largest value over a few tokens)",
            name_of(model), found.off_by,
        )  # fmt: skip
