"""Turn queries and keys further than the model's own positions have: what every change of rotary positions is."""

from __future__ import annotations

from dataclasses import dataclass

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
        exact = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        # The angle is made small first: float32 has too few digits for thousands of radians.
        angle = torch.remainder(angle.double(), 2 * torch.pi).to(vectors.device)
        cosine, sine = angle.cos().to(exact), angle.sin().to(exact)
        first, second = self.pairs[:, 0].to(vectors.device), self.pairs[:, 1].to(vectors.device)
        turned = vectors.to(exact, copy=True)
        a, b = turned[..., first], turned[..., second]
        turned[..., first], turned[..., second] = a * cosine - b * sine, b * cosine + a * sine
        return turned


def rotations(model: PreTrainedModel, num_tokens: int, who: str) -> dict[int, Rotation]:
    """Return the rotation of each layer that turns, for a prompt of `num_tokens`.

    `who` is the intervention that asks, for the message: raises `UsageError` where no layer has rotary positions, or
    one has them in a way that cannot be seen.
    """
    try:
        pairs = rotary_pairs(model)
    except NotReproducible as reason:
        raise UsageError(f"{who}: {name_of(model)} has no rotary positions that it could change: {reason}") from reason
    known = positions(model, num_tokens)
    found = {}
    for layer, of_layer in pairs.items():
        table = known["rotary"][known["layers"][str(layer)]["table"]]
        frequency = torch.tensor(table["inverse_frequencies"], dtype=torch.float64)
        found[layer] = Rotation(frequency, of_layer, float(table.get("attention_scaling") or 1.0))
    return found
