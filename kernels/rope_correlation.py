"""Which rotary pairs of channels follow the logits and the distance, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from probe.kernels.keys import Keys
from probe.kernels.rope_pairs import drawn_pairs, uniform
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.tally import Tally


@dataclass(frozen=True)
class rope_correlation(Statistic):
    """Pearson's correlation of c_d with the logit over pairs of a query and a key at least `nearest` before it, where
    c_d is what the rotary pair d of channels adds to the logit. Sampled as `rope_share` is: for each query one key from
    each distance bin, never one of the first `sinks`.

    With the distance is correlated the share Σ_{d' ≥ d} abs(c_d') / Σ abs(c_d') of the pair d and all slower ones; its
    control gives each pair of tokens the distance of another, drawn among the same query's. The part of channels that
    do not turn comes last, and counts as no slower pair: its share is its own. 0 where nothing varies, NaN where fewer
    than two pairs were drawn.
    """

    nearest: int = 64
    """Smallest distance that counts."""
    seed: int = 0
    """Which keys are drawn."""
    sinks: int = 4
    """How many first keys are never drawn."""

    kind = "key"
    compares_positions = True
    needs_rotary_pairs = True
    arrays: ClassVar = {
        "": ArrayFacts(("head", "rope_pair"), "ratio", merge="none"),
        "distance": ArrayFacts(
            ("head", "rope_pair"), "ratio", merge="none", meaning="the distance with the share of this pair and slower"
        ),
        "shuffled": ArrayFacts(
            ("head", "rope_pair"), "ratio", merge="none", meaning="the same with the distance of another pair of tokens"
        ),
        "num_pairs": ArrayFacts(("head",), "pairs", merge="sum", meaning="number of pairs drawn"),
    }
    source = "this toolkit's own, after Hong et al. 2024 (2410.08703), whose formula is not verified"

    def __post_init__(self) -> None:
        if self.nearest < 0 or self.sinks < 0:
            raise UsageError(f"rope_correlation: nearest and sinks are at least 0, not {self.nearest} and {self.sinks}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        if dense.call.rotary_pairs is None:
            return {}
        tally = self.tally()
        tally.take(dense.call, None)  # type: ignore[arg-type]
        return tally.correlations()

    def tally(self) -> _Moments:
        """Return the moments."""
        return _Moments(self)


class _Moments(Tally):
    """Σ 1, x, y, x², y² and xy of each correlation, in float64, where a query's mean distance is near 0."""

    def __init__(self, statistic: rope_correlation) -> None:
        super().__init__(statistic)
        self.statistic = statistic
        self._count = 0
        self._sums: dict[str, Tensor] = {}
        self._turning = 0

    def take(self, call: Call, new: Keys) -> None:
        """Add a call's pairs."""
        if call.rotary_pairs is None:
            return
        self._turning = len(call.rotary_pairs)
        first = call.query_start
        for pairs in drawn_pairs(call, self.statistic.seed, self.statistic.sinks):
            counted = pairs.there & (pairs.distance >= self.statistic.nearest)
            shuffled = self._shuffled(first, pairs.distance, counted)
            first += len(counted)
            distance = pairs.distance[counted].double()
            part, share = pairs.part[:, counted], pairs.share[:, counted]
            turning = share[..., : self._turning]
            slower = torch.cat([turning.flip(-1).cumsum(-1).flip(-1), share[..., self._turning :]], -1)
            self._count += len(distance)
            self._add("", part, part.sum(-1)[..., None])
            self._add("distance", slower, distance[None, :, None])
            self._add("shuffled", slower, shuffled[counted].double()[None, :, None])

    def correlations(self) -> dict[str, Tensor]:
        """Return them in float64."""
        if not self._sums:
            return {}
        arrays = {}
        for name, sums in self._sums.items():
            x, y, xx, yy, xy = (sums / self._count).unbind()
            spread = (xx - x * x).clamp(min=0), (yy - y * y).clamp(min=0)
            # What is left of rounding, where nothing varies.
            still = (spread[0] <= 1e-12 * xx) | (spread[1] <= 1e-12 * yy)
            value = (xy - x * y) / (spread[0] * spread[1]).sqrt()
            value = torch.where(still, 0.0, value).clamp(-1, 1)
            broken = ~(xx + yy).isfinite() if self._count >= 2 else torch.ones_like(still)
            arrays[name] = value.masked_fill(broken, torch.nan).cpu()
        arrays["num_pairs"] = torch.full(arrays[""].shape[:1], self._count, dtype=torch.int64)
        return arrays

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return what the moments say."""
        return {name: each.float() if each.is_floating_point() else each for name, each in self.correlations().items()}

    def _add(self, name: str, x: Tensor, y: Tensor) -> None:
        y = y.expand_as(x)
        added = torch.stack([each.sum(1) for each in (x, y, x * x, y * y, x * y)])
        self._sums[name] = self._sums[name] + added if name in self._sums else added

    def _shuffled(self, first: int, distance: Tensor, counted: Tensor) -> Tensor:
        """Return for each pair the distance of a pair of the same query, drawn by position as the pairs are."""
        num, bins = distance.shape
        order = torch.argsort(~counted, dim=1, stable=True)
        position = np.arange(first, first + num, dtype=np.int64)
        drawn = uniform(self.statistic.seed + 1, position[:, None], np.arange(bins, dtype=np.int64)[None])
        number = counted.sum(1, keepdim=True).clamp(min=1)
        other = (torch.from_numpy(drawn).to(distance.device) * number).long()
        return distance.gather(1, order.gather(1, other))
