"""Position interpolation, densely: queries and keys turned anew, by positions that are divided."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probe.hooks.interpolate_positions import interpolate_positions
from tests.interventions.dense_model import TRAINED, rotated_anew

EXAMPLES = [
    interpolate_positions(),
    interpolate_positions(1.7, layers=[1], queries=(3, 90)),
    interpolate_positions("auto", training_length=20, heads=[(0, 1), (1, 0), (1, 2)]),
]
IDENTITIES = [interpolate_positions(1), interpolate_positions("auto", training_length=1000)]


def definition(asked: interpolate_positions, model: Any) -> Any:
    def angle(position: Tensor, frequency: Tensor) -> Tensor:
        trained = asked.training_length or TRAINED
        factor = max(1.0, len(position) / trained) if asked.factor == "auto" else asked.factor
        return (position / factor)[:, None] * frequency

    return rotated_anew(asked, model, angle)
