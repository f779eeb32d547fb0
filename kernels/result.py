"""One finished array of a statistic, ready to be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from probe.kernels.pool import BLOCK_AXES, Pool
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally
from probe.sample import Span


@dataclass(frozen=True, eq=False)
class Result:
    """Values on the CPU with all that a trace says of them."""

    dims: tuple[str, ...]
    """Axes of the values, from the vocabulary."""
    values: Tensor
    """The values."""
    unit: str
    """Unit of the values; empty for a plain number."""
    definition: str
    """What it is, in words."""
    source: str
    """Paper and section, or `this toolkit's own`."""
    merge: str
    """Merge law: concatenate, sum, max or argmax."""
    coordinates: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Coordinate of each axis that has one."""
    block_tokens: int | None = None
    """Positions in a block, where an axis is one of blocks."""
    grows_along: str | None = None
    """Axis along which parts of the array join that a scan hands over one after the other; None where it has none."""

    @classmethod
    def of(
        cls,
        statistic: Statistic,
        suffix: str,
        values: Tensor,
        start: int,
        *,
        pool: Pool | None = None,
        spans: Sequence[Span] = (),
        tally: Tally | None = None,
    ) -> Result:
        """Label the values of one of a statistic's arrays, whose first position is `start`."""
        is_maximum = suffix not in statistic.arrays
        facts = statistic.arrays[suffix.removesuffix("max").rstrip("_") if is_maximum else suffix]
        pooled = pool is not None and statistic.kind != "row" and facts.axes[-1] in BLOCK_AXES
        dims = (*facts.axes[:-1], BLOCK_AXES[facts.axes[-1]]) if pooled else facts.axes
        definition = ": ".join(filter(None, (statistic.definition, facts.meaning)))
        merge: str = facts.merge
        if pooled and pool is not None:
            way = "of the largest" if merge == "argmax" else "maximum" if is_maximum else "mean"
            definition += f"; {way} over blocks of {pool.tokens} positions"
        coordinates = {}
        for dim, size in zip(dims, values.shape, strict=True):
            coordinate = statistic.coordinate(dim, size)
            if coordinate is None and tally is not None:
                coordinate = tally.coordinate(dim, size)
            if coordinate is None and pooled and pool is not None and dim == dims[-1]:
                coordinate = (start // pool.tokens + np.arange(size)) * pool.tokens
            elif coordinate is None and dim in ("query", "key", "token", "row"):
                coordinate = start + np.arange(size)
            elif coordinate is None and dim == "span":
                coordinate = np.array([span.name for span in spans], dtype=np.str_)
            if coordinate is not None:
                coordinates[dim] = coordinate
        grows = tally is None and statistic.kind != "row"
        return cls(
            dims,
            values,
            facts.unit,
            definition,
            statistic.source,
            merge,
            coordinates,
            block_tokens=pool.tokens if pooled and pool is not None else tally.block_tokens if tally else None,
            grows_along=dims[-1] if grows else None,
        )
