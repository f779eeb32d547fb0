"""Randomised positions: a prompt's tokens stand at random places of a larger range, in order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change
from probe.hooks.attention.change_of_positions import ChangeOfPositions, refuse_packed
from probe.hooks.attention.rotation import rotations
from probe.hooks.attention.tap import site
from probe.hooks.attention.turner import Turner, turners
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call
from probe.sample import Sample


@dataclass(frozen=True)
class randomise_positions(ChangeOfPositions):
    """Let the prompt's n tokens stand at n random positions of a range: `with randomise_positions(2048)(model):`.

    Positions are drawn without replacement from 0 to `range_tokens` − 1 and sorted, as Ruoss et al. (2023, arXiv
    2305.16843, section 3) draw them in training and in evaluation: a test of whether a model lives by the order of its
    tokens or by their distances. Three choices: the draw depends on the seed and the prompt's length alone, and is the
    same for every layer and head; tokens that are decoded follow the last drawn position one by one; what positions
    mean where they are scaled already stays. A prompt longer than the range is refused, as are models without rotary
    positions and packed documents.
    """

    range_tokens: int
    """Positions from which is drawn; the paper's L, larger than any prompt."""
    seed: int = 0
    """Another seed draws others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.range_tokens, int) or self.range_tokens < 1:
            raise UsageError(
                f"randomise_positions: range_tokens is a whole number, at least 1, not {self.range_tokens!r}"
            )

    def check(self, model: object, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        self._refuse_longer(len(sample))

    def positions(self, num_tokens: int) -> Float[Tensor, "token"]:
        """Return where the tokens of a prompt of this length stand, in float64."""
        self._refuse_longer(num_tokens)
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randperm(self.range_tokens, generator=draw)[:num_tokens].sort().values.double()

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        of_layer = rotations(model, 1, "randomise_positions")
        lengths, made = PromptLengths(), dict[int, dict[int, Turner]]()

        def change(here: site, sample: int, call: Call) -> Call:
            refuse_packed(call, "randomise_positions")
            if call.layer not in of_layer:
                return call
            length = lengths.of(here, sample, "randomise_positions")
            if length not in made:
                made.clear()
                drawn = self.positions(length)

                def moved(position: Tensor) -> Tensor:
                    known = drawn[position.long().clamp(max=length - 1)]
                    return known + (position - (length - 1)).clamp(min=0)

                made[length] = turners(of_layer, moved)
            turn = made[length][call.layer]
            query, key = turn(call.query, call.query_start), turn(call.key, call.key_start)
            return dataclasses.replace(call, query=query, key=key, log_sum_exp=None)

        return change

    def _refuse_longer(self, num_tokens: int) -> None:
        if num_tokens > self.range_tokens:
            raise UsageError(
                f"randomise_positions: range_tokens={self.range_tokens} has no room for a prompt of {num_tokens} tokens"
            )
