"""Keep the keys that have received most attention, and the latest ones (H2O)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probe.errors import UsageError
from probe.hooks.attention.eviction_by_step import EvictionByStep


@dataclass(frozen=True)
class heavy_hitters(EvictionByStep):
    """Keep what past queries attended to most: `with heavy_hitters(256)(model):`.

    At every step, of the tokens before the latest ones, each key-value head drops the key that has received the least
    attention from all queries so far. Zhang et al. (2023, arXiv 2306.14048, H2O), whose definition is causal; the mask
    that the authors' evaluation code puts on by default sums over the queries to come as well, and is not this. The
    sums are not divided by the number of queries that could see a key, so they favour early ones. Query heads that
    share a key-value head are averaged (the paper has none that share).
    """

    recent: float = 0.5
    """Share of the budget that is kept for the latest tokens, the newest included, rounded down; half in the paper."""

    cumulative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise UsageError(f"heavy_hitters: recent is a share of the budget from 0 to 1, not {self.recent}")

    def num_protected(self, budget: int) -> int:
        """See `EvictionByStep.num_protected`."""
        return int(self.recent * budget)
