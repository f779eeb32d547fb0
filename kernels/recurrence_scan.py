"""What is asked of one recurrent layer, from the recurrences of its chunks and decoded tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.exact import exact
from probe.kernels.hidden_attention import HiddenAttention, HiddenRow
from probe.kernels.pool import Pool
from probe.kernels.recurrence import Recurrence
from probe.kernels.result import Result
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic, parse


class RecurrenceScan:
    """Computes statistics of kind `recurrence` of one layer and one sample, from consecutive recurrences.

    The answer does not depend on how the tokens came in chunks (to float32 rounding). Rows are the tokens whose phase
    is `decode`; only for statistics of rows is anything kept of the tokens before.
    """

    def __init__(
        self, statistics: Sequence[str | Mapping[str, Any] | Statistic], *, pool_tokens: int | None = None
    ) -> None:
        """Prepare; raises `UsageError` where statistics of the state disagree on when it is read."""
        asked = {statistic.key: statistic for statistic in map(parse, statistics)}
        if wrong := [key for key, statistic in asked.items() if statistic.kind != "recurrence"]:
            raise ValueError(f"not statistics of a recurrent layer: {', '.join(wrong)}")
        by_axis: dict[str, list[Statistic]] = {"position": [], "token": [], "row": []}
        for statistic in asked.values():
            axes = statistic.arrays[""].axes
            by_axis["row" if "row" in axes else axes[-1]].append(statistic)
        self._of_state, self._of_steps, self._of_rows = by_axis.values()
        self._every = reading_interval(self._of_state)
        self._pool = None if pool_tokens is None else Pool(pool_tokens)
        self._series = {s.key: Series(s.arrays, "position") for s in self._of_state}
        self._series |= {s.key: Series(s.arrays, "token", self._pool) for s in self._of_steps}
        self._rows: dict[str, list[dict[str, Tensor]]] = {s.key: [] for s in self._of_rows}
        self._history = HiddenAttention()
        self._num_read = 0
        self._last: dict[str, Tensor] = {}
        self._stop: int | None = None

    def update(self, recurrence: Recurrence) -> None:
        """Take the next tokens; raises `ValueError` where they do not follow those before."""
        if self._stop not in (None, recurrence.start):
            raise ValueError(f"tokens from {recurrence.start} on do not follow those before {self._stop}")
        with exact(recurrence.value.device):
            if self._of_state:
                self._read_states(recurrence)
            for statistic in self._of_steps:
                self._series[statistic.key].append(statistic.of_steps(recurrence), recurrence.start)
            if self._of_rows:
                self._history.append(recurrence)
                for token in range(recurrence.num_tokens if recurrence.phase == "decode" else 0):
                    self._take_row(self._history.row(recurrence, token))
        self._stop = recurrence.stop

    def drain(self) -> dict[str, Result]:
        """Return what is finished of the arrays that grow with the prompt, and keep it no longer.

        Each result's `grows_along` is the axis along which it continues the one drained before; `finish` gives the
        rest. Rows come from `finish` alone.
        """
        return self._grown(last=False)

    def finish(self) -> dict[str, Result]:
        """Return every array by its name in a trace, less what was drained; nothing where no token has come."""
        for key, values in self._last.items():
            self._series[key].append({"": values[:, None]}, self._num_read)
        self._num_read += bool(self._last)
        self._last = {}
        return {**self._grown(last=True), **self._finished_rows()}

    def _read_states(self, recurrence: Recurrence) -> None:
        first = self._every - recurrence.start % self._every
        counts = [*range(first, recurrence.num_tokens, self._every), recurrence.num_tokens]
        for count, state in zip(counts, recurrence.states(counts), strict=True):
            found = {statistic.key: statistic.of_state(state) for statistic in self._of_state}
            if (recurrence.start + count) % self._every:
                # Read only if no more tokens come.
                self._last = found
                continue
            self._last = {}
            for key, values in found.items():
                self._series[key].append({"": values[:, None]}, self._num_read)
            self._num_read += 1

    def _take_row(self, row: HiddenRow) -> None:
        for statistic in self._of_rows:
            self._rows[statistic.key].append({s: each.cpu() for s, each in statistic.of_row(row).items()})

    def _grown(self, *, last: bool) -> dict[str, Result]:
        results: dict[str, Result] = {}
        for statistic in (*self._of_state, *self._of_steps):
            series = self._series[statistic.key]
            arrays, start = series.finish() if last else series.drain()
            of_state = statistic in self._of_state
            for suffix, values in arrays.items():
                result = Result.of(statistic, suffix, values, start, pool=None if of_state else self._pool)
                if of_state:
                    result = dataclasses.replace(result, coordinates={"position": self._positions(start, values)})
                results[statistic.array_name(suffix)] = result
        return results

    def _positions(self, first: int, values: Tensor) -> np.ndarray[Any, Any]:
        """Return the last token before each reading, of which `values` holds those from the `first` on."""
        positions = (first + 1 + np.arange(values.shape[-1])) * self._every - 1
        assert self._stop is not None
        return np.minimum(positions, self._stop - 1)

    def _finished_rows(self) -> dict[str, Result]:
        results: dict[str, Result] = {}
        for statistic in self._of_rows:
            rows = self._rows[statistic.key]
            for suffix in rows[0] if rows else ():
                values = [row[suffix] for row in rows]
                facts = statistic.arrays[suffix]
                if facts.axes[-1] == "row":
                    results[statistic.array_name(suffix)] = Result.of(statistic, suffix, torch.stack(values, 1), 0)
                    continue
                # Nothing reads a token that comes later.
                assert self._stop is not None
                whole = torch.stack([torch.nn.functional.pad(v, (0, self._stop - v.shape[-1])) for v in values], 1)
                arrays = {suffix: whole} if self._pool is None else self._pool({suffix: whole}, statistic.arrays, 0)
                for name, array in arrays.items():
                    results[statistic.array_name(name)] = Result.of(statistic, name, array, 0, pool=self._pool)
        return results


def reading_interval(statistics: Sequence[Statistic]) -> int:
    """Return how many tokens lie between two readings of the state: the same for all statistics of one trace.

    Raises `UsageError` naming those that disagree. Others are left out; 1 where none is left.
    """
    of_state = [statistic for statistic in statistics if "position" in statistic.arrays[""].axes]
    every = {statistic.key: int(getattr(statistic, "every", 1)) for statistic in of_state}
    if len(set(every.values())) > 1:
        raise UsageError(f"{', '.join(every)}: statistics of the state in one trace are read after equally many tokens")
    return next(iter(every.values()), 1)
