"""Turn queries and keys further than the model's own positions have: what every change of rotary positions is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.loading.positions import positions
from probe.hooks.loading.rotary_pairs import rotary_pairs


@dataclass(frozen=True, eq=False)
class Rotation:
    """How one layer turns its queries and keys: channels `pairs[d]` by `position · inverse_frequency[d]`."""

    inverse_frequency: Float[Tensor, "rope_pair"]
    """Radians a token, in float64 on the CPU, as the model uses them at the length that was asked for."""
    pairs: Int[Tensor, "rope_pair 2"]
    """The channels of a head that turn together."""
    attention_scaling: float
    """The factor on cosine and sine that the model has already."""

    def turned(
        self, vectors: Float[Tensor, "head token channel"], angle: Float[Tensor, "*head token rope_pair"]
    ) -> Float[Tensor, "head token channel"]:
        """Return queries or keys turned by so many radians more, in float32 (float64 for float64).

        `angle` is of all heads where it has no axis of them. Channels that do not turn are left as they are.
        """
        return self.turned_by(vectors, *cosine_and_sine(angle, vectors))

    def turned_by(
        self,
        vectors: Float[Tensor, "head token channel"],
        cosine: Float[Tensor, "*head token rope_pair"],
        sine: Float[Tensor, "*head token rope_pair"],
    ) -> Float[Tensor, "head token channel"]:
        """Return the same from what `cosine_and_sine` made, for angles that are needed again."""
        turned = vectors.to(cosine.dtype, copy=True)
        a, b = turned[..., self._channels[0]], turned[..., self._channels[1]]
        before = a.clone()
        a.mul_(cosine).addcmul_(b, sine, value=-1)
        b.mul_(cosine).addcmul_(before, sine)
        return turned

    def turns_as(self, other: Rotation) -> bool:
        """Whether the other one turns alike."""
        same = self.inverse_frequency.equal(other.inverse_frequency) and self.pairs.equal(other.pairs)
        return same and self.attention_scaling == other.attention_scaling

    @cached_property
    def _channels(self) -> tuple[slice, slice]:
        """The pairs' first and second channels; models pair halves or neighbours, so that they are regular."""
        made = []
        for channels in self.pairs.T.tolist():
            step = channels[1] - channels[0] if len(channels) > 1 else 1
            made.append(slice(channels[0], channels[-1] + 1, step))
            assert list(range(*made[-1].indices(channels[-1] + 1))) == channels
        return made[0], made[1]


def cosine_and_sine(
    angle: Float[Tensor, "*head token rope_pair"], like: Tensor
) -> tuple[Float[Tensor, "*head token rope_pair"], Float[Tensor, "*head token rope_pair"]]:
    """Return cosine and sine of angles in float32, on the device of `like`; in float64 where it is of float64."""
    exact = torch.float64 if like.dtype == torch.float64 else torch.float32
    # The angle is made small first: float32 has too few digits for thousands of radians.
    angle = torch.remainder(angle.double(), 2 * torch.pi)
    return angle.cos().to(like.device, exact), angle.sin().to(like.device, exact)


def rotations(model: PreTrainedModel, num_tokens: int, who: str) -> dict[int, Rotation]:
    """Return the rotation of each layer that turns, for a prompt of `num_tokens`; one object where layers turn alike.

    `who` is the intervention that asks, for the message: raises `UsageError` where no layer has rotary positions, one
    has them in a way that cannot be seen, or they depend on the prompt's length (dynamic NTK scaling, LongRoPE), so
    that what a cache holds may be turned in several ways.
    """
    try:
        pairs = rotary_pairs(model)
    except NotReproducible as reason:
        raise UsageError(f"{who}: {name_of(model)} has no rotary positions that it could change: {reason}") from reason
    known = positions(model, num_tokens)
    found: dict[int, Rotation] = {}
    for layer, of_layer in pairs.items():
        table = known["rotary"][known["layers"][str(layer)]["table"]]
        if table["type"] == "longrope" or "dynamic" in table["type"]:
            raise UsageError(
                f"{who}: {name_of(model)} turns its queries and keys by frequencies that depend on the prompt's length "
                f"(rope_type {table['type']!r}); load it without this scaling"
            )
        frequency = torch.tensor(table["inverse_frequencies"], dtype=torch.float64)
        rotation = Rotation(frequency, of_layer, float(table.get("attention_scaling") or 1.0))
        found[layer] = next((each for each in found.values() if each.turns_as(rotation)), rotation)
    return found
