"""Randomised positions, densely: the prompt's tokens at sorted draws from a larger range."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probe.hooks.randomise_positions import randomise_positions
from tests.interventions.dense_model import rotated_anew

EXAMPLES = [
    randomise_positions(1000),
    randomise_positions(300, seed=5, heads=[(0, 1), (1, 0), (1, 2)]),
]
# A range no larger than the prompt leaves one draw.
IDENTITIES = [randomise_positions(65)]


def definition(asked: randomise_positions, model: Any) -> Any:
    def angle(position: Tensor, frequency: Tensor) -> Tensor:
        # What is drawn is the intervention's to say; that it is a fair draw is tested elsewhere.
        drawn = asked.positions(len(position)).double()
        assert drawn.equal(drawn.unique())
        assert float(drawn.max()) < asked.range_tokens
        return drawn[:, None] * frequency

    return rotated_anew(asked, model, angle)
