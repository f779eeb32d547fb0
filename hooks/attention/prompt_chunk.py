"""A chunk of a prompt after cached keys, put through SDPA without the chunk × keys mask that transformers makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.masking_utils import causal_mask_function

MaskFunction = Callable[..., "Tensor | None"]


@dataclass(eq=False)
class prompt_chunk:
    """A forward over a chunk of one prompt, and the plain causal mask that was left out of it."""

    num_past: int
    """Tokens in the cache before the chunk."""
    num_tokens: int
    """Tokens of the chunk."""
    make: Callable[[], Tensor | None] | None = None
    """Makes the mask that was left out; None as long as none was."""
    _mask: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """The mask that was left out, made once, for a layer that cannot do without it."""
        if self._mask is None and self.make is not None:
            self._mask = self.make()
        return self._mask


_running: ContextVar[prompt_chunk | None] = ContextVar("probe_prompt_chunk", default=None)


@contextmanager
def without_plain_masks(chunk: prompt_chunk) -> Iterator[None]:
    """Within the block no mask is made for a plain causal layer of a model whose SDPA attention is redirected.

    Attention must then come from `chunk_attention`: SDPA alone, given no mask and fewer queries than keys, hides the
    wrong keys.
    """
    token = _running.set(chunk)
    try:
        yield
    finally:
        _running.reset(token)


def running_chunk() -> prompt_chunk | None:
    """The chunk that is being put through, if one is."""
    return _running.get()


def plain_masks_left_out(own: MaskFunction) -> MaskFunction:
    """The mask function `own`, but for plain causal masks of a running chunk, of which it makes none."""

    def mask_or_none(*args: Any, **given: Any) -> Tensor | None:
        chunk = _running.get()
        if chunk is None or args or not _is_plain(chunk, given):
            return own(*args, **given)
        chunk.make = lambda: own(**given)
        return None

    return mask_or_none


def _is_plain(chunk: prompt_chunk, given: dict[str, Any]) -> bool:
    """Whether it is the causal mask of this chunk over all the keys before it, with nothing laid over it."""
    wanted = {
        "batch_size": 1,
        "q_length": chunk.num_tokens,
        "kv_length": chunk.num_past + chunk.num_tokens,
        "q_offset": chunk.num_past,
        "kv_offset": 0,
        "attention_mask": None,
        "allow_is_causal_skip": True,
    }
    if chunk.num_past == 0 or chunk.num_tokens == 1 or given.get("mask_function") is not causal_mask_function:
        return False
    plain = all(name in given and given[name] == value for name, value in wanted.items())
    return plain and given.get("local_size") is None
