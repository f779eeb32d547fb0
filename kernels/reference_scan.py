"""The scan by definition: dense, in float64, for prompts short enough that the matrix may exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.dense import MAX_KEYS, Dense
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally


class ReferenceScan:
    """Keeps queries and keys, and evaluates every statistic's `reference` once the last call has come.

    Keys that a sliding cache drops are kept too.
    """

    name = "reference"

    def __init__(
        self, statistics: Sequence[Statistic], series: Mapping[str, Series], tallies: Mapping[str, Tally]
    ) -> None:
        self.statistics = statistics
        self.series = series
        self.tallies = tallies
        self._call: Call | None = None

    def take(self, call: Call, tokens: Tensor | None, tokens_start: int) -> None:
        """Keep the call; raises `UsageError` for more keys than the definition takes."""
        if call.key_start + call.num_keys > MAX_KEYS:
            raise UsageError(
                f"engine 'reference' is dense and takes prompts of at most {MAX_KEYS:,} tokens, "
                f"not {call.key_start + call.num_keys:,}"
            )
        self._call = call if self._call is None else _joined(self._call, call)

    def finish(self) -> None:
        """Evaluate the definitions."""
        if self._call is None:
            return
        call, self._call = self._call, None
        dense = Dense(dataclasses.replace(call, log_sum_exp=None))
        for statistic in self.statistics:
            arrays = statistic.reference(dense)
            if statistic.key in self.series:
                self.series[statistic.key].append(arrays, call.query_start)
            else:
                self.tallies[statistic.key].take_reference(arrays, dense)


def _joined(before: Call, call: Call) -> Call:
    """Return one call with the queries and the keys of both, of which the later one may hold some already."""
    kept = call.key_start - before.key_start
    if not 0 <= kept <= before.num_keys:
        raise ValueError(f"keys from {call.key_start} on do not go on from those before")

    if before.changes or call.changes:
        raise UsageError("engine 'reference' takes a prompt whose logits an intervention changes in one call alone")

    def rows(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        return None if old is None or new is None else torch.cat([old[:kept], new])

    return dataclasses.replace(
        call,
        query=torch.cat([before.query, call.query], 1),
        key=torch.cat([before.key[:, :kept], call.key], 1),
        value=torch.cat([before.value[:, :kept], call.value], 1),
        query_start=before.query_start,
        key_start=before.key_start,
        tokens=rows(before.tokens, call.tokens),
        document=rows(before.document, call.document),
        key_visible=rows(before.key_visible, call.key_visible),
    )
