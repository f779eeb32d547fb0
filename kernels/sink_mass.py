"""Attention that is parked on the first tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, finish_sum, of_rows, start_sum
from probe.kernels.normaliser import Normaliser
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class sink_mass(Statistic):
    """Σ_j p_ij over the keys at the sample's first `num_sink` positions, the query's own included where it is one.

    A learned sink's share of the normaliser is kept apart, in `sink_mass_learned` (absent where the model has none).
    """

    num_sink: int = 4
    """Number of first positions."""

    kind = "scan"
    arrays: ClassVar = {
        "": ArrayFacts(("head", "query"), "probability"),
        "learned": ArrayFacts(("head", "query"), "probability", meaning="share of the learned sink instead"),
    }
    source = "Xiao et al. 2023 (2309.17453): four sink tokens; mass per query is this toolkit's own form"

    def __post_init__(self) -> None:
        if self.num_sink < 1:
            raise UsageError(f"sink_mass: num_sink is at least 1, not {self.num_sink}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        mass = {"": dense.probability[..., dense.key_position < self.num_sink].sum(-1)}
        return mass if dense.call.sink_logit is None else mass | {"learned": dense.sink_probability}

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        learned = normaliser.sink_probability
        return {} if learned is None else {"learned": learned}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        return {"": block.mass_of_keys(0, self.num_sink)}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(start_sum, _update, finish_sum, "", num_sink=self.num_sink)


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    mass = state[0]
    if tile.key_start < memory[1]:
        mass += tl.sum(tl.where((tile.key < memory[1])[None, :], tile.probability, 0.0), 1)
    return mass, state[1]
