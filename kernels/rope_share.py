"""Which rotary pairs of channels make the logits, by distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys
from probe.kernels.rope_pairs import bin_edges, drawn_pairs
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally


@dataclass(frozen=True)
class rope_share(Statistic):
    """Mean of abs(c_d) / Σ_d abs(c_d) over pairs of a query and a key before it, by distance, where c_d is what the
    rotary pair d of channels adds to the logit: the c_d sum to it exactly, before softcap and biases. Sampled: for
    each query one key from each distance bin, never one of the first `sinks`.

    Which keys are drawn follows from `seed` and the positions alone. Pairs of channels are in the order of the model's
    table of frequencies; where some channels do not turn, their part comes last, as one more. A bin without a drawn
    pair is NaN. A layer that does not turn has no array.
    """

    seed: int = 0
    """Which keys are drawn."""
    sinks: int = 4
    """How many first keys are never drawn."""

    kind = "key"
    compares_positions = True
    needs_rotary_pairs = True
    arrays: ClassVar = {
        "": ArrayFacts(("head", "distance_bin", "rope_pair"), "ratio", merge="none"),
        "num_pairs": ArrayFacts(("head", "distance_bin"), "pairs", merge="sum", meaning="number of pairs drawn"),
    }
    source = "this toolkit's own, after Hong et al. 2024 (2410.08703), whose formula is not verified"

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise UsageError(f"rope_share: sinks is at least 0, not {self.sinks}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        if dense.call.rotary_pairs is None:
            return {}
        tally = self.tally()
        tally.take(dense.call, None)  # type: ignore[arg-type]
        return tally.means()

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the bins' lower edges."""
        return bin_edges(1 << (size - 1))[:size] if axis == "distance_bin" else None

    def tally(self) -> _Shares:
        """Return the sums of shares."""
        return _Shares(self)


class _Shares(Tally):
    """Σ of shares and number of pairs by bin, in float64."""

    def __init__(self, statistic: rope_share) -> None:
        super().__init__(statistic)
        self.statistic = statistic
        self._sum: Tensor | None = None
        self._count = torch.zeros(0, dtype=torch.float64)

    def take(self, call: Call, new: Keys) -> None:
        """Add a call's pairs."""
        if call.rotary_pairs is None:
            return
        for pairs in drawn_pairs(call, self.statistic.seed, self.statistic.sinks):
            added = torch.where(pairs.there[..., None], pairs.share, 0.0).sum(1)
            count = pairs.there.sum(0).to(added)
            if self._sum is None:
                self._sum, self._count = added, count
                continue
            more = added.shape[1] - self._sum.shape[1]
            self._sum = torch.nn.functional.pad(self._sum, (0, 0, 0, max(more, 0)))
            self._count = torch.nn.functional.pad(self._count, (0, max(more, 0)))
            self._sum[:, : added.shape[1]] += added
            self._count[: added.shape[1]] += count

    def means(self) -> dict[str, Tensor]:
        """Return the means in float64."""
        if self._sum is None:
            return {}
        count = self._count.cpu()
        mean = torch.where(count[:, None] > 0, self._sum.cpu() / count[:, None], torch.nan)
        return {"": mean, "num_pairs": count.long().expand(len(mean), -1).clone()}

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return the means."""
        return {name: each.float() if each.is_floating_point() else each for name, each in self.means().items()}
