"""What a statistic of the cache sees: the keys and values that are new in it, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK_KEYS = 4096
"""Keys that are turned into float32 or float64 at a time."""


@dataclass(frozen=True, eq=False)
class Keys:
    """Consecutive keys and values of one layer, after rotation, in the model's dtype, on its device."""

    layer: int
    """Index of the attention layer, from 0."""
    start: int
    """Position of the first key."""
    key: Float[Tensor, "kv_head key channel"]
    """The keys."""
    value: Float[Tensor, "kv_head key value_channel"]
    """Their values."""
    visible: Bool[Tensor, "key"] | None = None
    """False for keys that are hidden from every query; None where none is."""
    before: Float[Tensor, "kv_head 1 channel"] | None = None
    """The key at position `start − 1`; None where there is none, or it was gone when watching began."""
    below: Keys | None = None
    """Keys of the attention layer before at the same positions; None where nothing is known of them."""

    @property
    def num_keys(self) -> int:
        """Number of keys."""
        return self.key.shape[1]

    @property
    def stop(self) -> int:
        """Position after the last key."""
        return self.start + self.num_keys

    def between(self, start: int, stop: int) -> Keys:
        """Return the keys at positions `[start, stop)`; raises `ValueError` where these are not all here."""
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(
                f"layer {self.layer}: keys {start} to {stop} are asked for, only {self.start} to {self.stop} are there"
            )
        cut = slice(start - self.start, stop - self.start)
        return replace(
            self,
            start=start,
            key=self.key[:, cut],
            value=self.value[:, cut],
            visible=None if self.visible is None else self.visible[cut],
            before=self.before if start == self.start else self.key[:, cut.start - 1 : cut.start],
            below=None if self.below is None else self.below.between(start, stop),
        )

    def blocks(self) -> Iterator[Keys]:
        """Yield them a few thousand at a time."""
        for start in range(self.start, self.stop, BLOCK_KEYS):
            yield self.between(start, min(start + BLOCK_KEYS, self.stop))

    def copy(self) -> Keys:
        """Return copies of the keys and values alone, which keep no larger tensor alive."""
        return replace(self, key=self.key.clone(), value=self.value.clone(), before=None, below=None)


def cosine(
    a: Float[Tensor, "*positions channel"], b: Float[Tensor, "*positions channel"]
) -> Float[Tensor, "*positions"]:
    """Return the cosine of the angle between vectors, in float32 or wider; 0 where either is zero."""
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(wide), b.to(a.device, wide)
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norms == 0, norms, (a * b).sum(-1) / norms).clamp(-1, 1)


def as_float64(tensor: Tensor) -> Tensor:
    """Return it in float64, on the CPU where its device has none."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
