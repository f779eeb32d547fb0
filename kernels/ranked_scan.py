"""The scan of a prompt whose queries and keys are spread over ranks: keys go around, statistics merge by their laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.key_scan import KeyScan
from probe.kernels.keys import Keys
from probe.kernels.normaliser import given
from probe.kernels.result import Result
from probe.kernels.ring import Ring, Stretch
from probe.kernels.scan import AXES, Scan
from probe.kernels.series import Series
from probe.kernels.statistic import Statistic
from probe.kernels.tally import Tally
from probe.kernels.visibility import Visibility
from probe.kernels.walk import Walk

ALONG_KEYS = {"key": 1, "value": 1, "document": 0, "key_visible": 0}
"""What goes around, where a call has it, and the axis of its keys."""


class RankedScan(Scan):
    """A `Scan` of which every rank takes its own stretch of each call; rank 0 finishes it.

    A prompt comes in one call, of which each rank brings consecutive queries and their own keys, or none of either;
    tokens decoded after it are brought by the last rank that has keys, while the others bring their keys and no query.
    Keys go around the ring (Liu et al. 2023, Ring Attention), twice: for the log-sum-exp over all of them, unless the
    calls hand it over, and for the statistics given it. What queries have stays on their rank until `finish`.
    """

    def __init__(self, statistics: Sequence[str | Mapping[str, Any] | Statistic], ring: Ring, **options: Any) -> None:
        """Prepare; `options` are those of `Scan`. Raises `UsageError` for statistics that do not merge, by name."""
        super().__init__(statistics, **options)
        refuse_what_does_not_merge(self.statistics)
        if self._asked_engine == "reference":
            raise UsageError("engine 'reference' takes a prompt of one process alone")
        self.ring = ring
        self._own = {key: Pieces(series.facts, series.axis, series.pool) for key, series in self._series.items()}
        self._key_scan = KeyScan(self._key_scan.statistics, self._own, self._tallies)
        self._num_held = [0] * ring.size

    @property
    def engine_name(self) -> str | None:
        """What computed the statistics of kind `scan` on this rank, and over how many."""
        name = super().engine_name
        return None if name is None else f"{name}, over {self.ring.size} ranks"

    def update(self, call: Call, below: Keys | None = None) -> None:
        """Take this rank's stretch of the next call; every rank has to. Raises `RankLost` where one does not come."""
        if call.part == "cross" or call.changes:
            what = "cross-attention" if call.part == "cross" else "interventions that change logits"
            raise UsageError(f"{what}: not over several ranks")
        with exact(call.query.device):
            stretches = self.ring.stretches(call)
            self._note_all(call, stretches)
            self._take_keys(call, below, stretches)
            rows = self._rows if call.phase == "decode" else []
            if self._scan or rows:
                if call.log_sum_exp is None:
                    call = dataclasses.replace(call, log_sum_exp=self._log_sum_exp(call, stretches))
                self._take_queries(call, stretches, rows)
                self._give_to_owners(call, stretches)
        self._num_held = [each.num_keys for each in stretches]

    def drain(self) -> dict[str, Result]:
        """Return nothing: what the ranks have comes together when they finish."""
        return {}

    def finish(self) -> dict[str, Result]:
        """Return every array at rank 0, as `Scan.finish` does, and nothing at the others; every rank has to."""
        own = {
            f"{statistic.key}/{name}": each
            for statistic in self.statistics
            for name, each in self._held_by(statistic.key).items()
        }
        for rank, tensors in enumerate(self.ring.gather(own)):
            for statistic in self.statistics:
                found = under(statistic.key, tensors)
                if found and statistic.key in self._own:
                    whole, (arrays, first) = self._series[statistic.key], opened(found)
                    whole.append(arrays, whole.stop or 0 if statistic.kind == "row" else first)
                elif found and rank:
                    self._tallies[statistic.key].merge(found)
        return self._results(self.statistics, last=True) if self.ring.rank == 0 else {}

    def _held_by(self, key: str) -> dict[str, Tensor]:
        return self._own[key].taken() if key in self._own else self._tallies[key].state()

    def _note_all(self, call: Call, stretches: Sequence[Stretch]) -> None:
        held = [each for each in stretches if each.num_keys]
        if held:
            self._keys_seen = held[0].key_start, held[-1].key_stop
        if call.tokens is None or not any(s.needs_tokens for s in self._scan):
            return
        new = call.tokens[self._num_held[self.ring.rank] :]
        lengths = [each.num_keys - before for each, before in zip(stretches, self._num_held, strict=True)]
        if self._tokens is None:
            self._tokens, self._tokens_start = call.tokens.new_empty(0), held[0].key_start if held else 0
        found = self.ring.everywhere(new, lengths)
        self._tokens = torch.cat([self._tokens, *(each.to(self._tokens) for each in found)])

    def _take_keys(self, call: Call, below: Keys | None, stretches: Sequence[Stretch]) -> None:
        """Take the keys that are this rank's own, each with the one before it, which may be another rank's."""
        if not self._key_scan.statistics:
            return
        before, last = None, None
        for rank, each in enumerate(stretches):
            if last is not None and each.num_keys and not self._num_held[rank]:
                room = call.key.new_empty(len(call.key), 1, call.key.shape[2])
                passed = self.ring.pass_on(call.key[:, -1:] if self.ring.rank == last else room, last, rank)
                before = before if passed is None else passed
            last = rank if each.num_keys else last
        if call.num_keys > self._num_held[self.ring.rank] or call.num_queries:
            self._key_scan.take(call, below, before)

    def _log_sum_exp(self, call: Call, stretches: Sequence[Stretch]) -> Float[Tensor, "head query"]:
        """Return log Σ exp over the keys of all ranks, a learned sink left aside, in float64."""
        total = torch.full(call.query.shape[:2], -torch.inf, dtype=torch.float64, device=call.query.device)
        for rank, tensors in around(self.ring, call, stretches, without="value"):
            part = dataclasses.replace(part_of(call, stretches[rank], tensors), sink_logit=None)
            found = [
                normaliser.max_logit.double() + normaliser.log_excess.double()
                for normaliser, _ in Walk(*self._blocks).over(part)
                if normaliser.max_logit is not None
            ]
            total = torch.logaddexp(total, torch.cat(found, 1))
        return total

    def _take_queries(self, call: Call, stretches: Sequence[Stretch], rows: Sequence[Statistic]) -> None:
        """Add what every stretch of keys gives to this rank's queries, given the log-sum-exp over all of them."""
        assert call.log_sum_exp is not None
        whole = call.log_sum_exp
        if call.sink_logit is not None:
            whole = torch.logaddexp(whole, call.sink_logit.to(whole)[:, None])
        num_visible = torch.zeros(call.num_queries, dtype=torch.int64)
        held: dict[str, dict[str, Tensor]] = {s.key: {} for s in (*self._scan, *rows)}
        for rank, tensors in around(self.ring, call, stretches):
            # The sink's share is in the normaliser, so that it is counted once.
            part = dataclasses.replace(part_of(call, stretches[rank], tensors), log_sum_exp=whole, sink_logit=None)
            num_visible += Visibility.of(part).num_keys
            found = self._scanned(part) | self._of_rows(part, rows)
            for statistic in (*self._scan, *rows):
                if statistic.key in found:
                    held[statistic.key] = statistic.join(held[statistic.key], found[statistic.key])
        if not call.num_queries:
            return
        stop = call.query_start + call.num_queries
        normaliser = given(call, call.query_start, stop, num_visible.to(call.query.device))
        for statistic in self._scan:
            if statistic.key in self._own:
                arrays = held[statistic.key] | {s: each.cpu() for s, each in statistic.per_query(normaliser).items()}
                self._own[statistic.key].append(arrays, call.query_start)
        for statistic in rows:
            self._own[statistic.key].append(statistic.of_rows(held[statistic.key]), call.query_start)

    def _give_to_owners(self, call: Call, stretches: Sequence[Stretch]) -> None:
        """Hand what each key received to the rank that has the key: none keeps the sums of other keys than its own."""
        ranks, rank = range(self.ring.size), self.ring.rank
        for statistic in self._scan:
            tally = self._tallies.get(statistic.key)
            along_keys = {f"array {suffix}" for suffix, facts in statistic.arrays.items() if facts.axes[-1] == "key"}
            if tally is None or not along_keys or type(tally).state is not Tally.state:
                continue
            state, own = tally.state(), statistic.tally()
            for giver, owner in ((g, o) for g in ranks for o in ranks if g != o and stretches[g].sees(stretches[o])):
                if rank == giver:
                    self.ring.give(_of_keys(state, stretches[owner], along_keys), owner)
                elif rank == owner and (found := self.ring.take(giver)):
                    # Where its own arrays are: some are counted on the CPU.
                    own.merge({name: each.to(state.get(name, call.query).device) for name, each in found.items()})
            mine = _of_keys(state, stretches[rank], along_keys)
            rest = {name: each for name, each in state.items() if name.startswith("array ") and name not in along_keys}
            if mine or rest:
                own.merge({"origin": state["origin"]} | mine | rest)
            self._tallies[statistic.key] = own

    def _scanned(self, part: Call) -> dict[str, dict[str, Tensor]]:
        """Add one stretch's contribution to the tallies, and return what it gives to each query."""
        reading = [s for s in self._scan if s.reads_blocks]
        if not reading:
            return {}
        series = {s.key: Series(s.arrays, AXES[s.kind]) for s in reading if s.key in self._own}
        self._engine = self._new_engine(part, reading, series)
        self._engine.take(part, self._tokens, self._tokens_start)
        return {key: each.finish()[0] for key, each in series.items()}

    def _of_rows(self, part: Call, rows: Sequence[Statistic]) -> dict[str, dict[str, Tensor]]:
        pieces: dict[str, list[dict[str, Tensor]]] = {s.key: [] for s in rows}
        for _, blocks in self._row_walk.over(part) if rows else ():
            for block in blocks:
                for statistic in rows:
                    pieces[statistic.key].append(statistic.blocked(block))
        # Queries are the second axis of whatever a row statistic gives.
        return {
            key: {suffix: torch.cat([each[suffix] for each in found], 1).cpu() for suffix in found[0]}
            for key, found in pieces.items()
        }


class Pieces(Series):
    """Keeps what comes, on the CPU and unpooled: a block that is pooled may lie on two ranks."""

    def append(self, arrays: dict[str, Tensor], start: int) -> None:
        """Keep the arrays of the positions from `start` on."""
        self.start = start if self.start is None else self.start
        self._done.append({suffix: values.cpu() for suffix, values in arrays.items()})

    def taken(self) -> dict[str, Tensor]:
        """Return them joined, and where they start; nothing where there are none."""
        if self.start is None or not self._done:
            return {}
        arrays = {f"array {suffix}": each for suffix, each in self._join(self._done).items()}
        return {"start": torch.tensor(self.start)} | arrays


def _of_keys(state: Mapping[str, Tensor], stretch: Stretch, names: set[str]) -> dict[str, Tensor]:
    """Return the part of a tally's state that is of a stretch of keys; nothing where it has none."""
    if not state:
        return {}
    origin = int(state["origin"])
    first, stop = max(stretch.key_start - origin, 0), max(stretch.key_stop - origin, 0)
    cut = {name: state[name][..., first:stop] for name in names & state.keys()}
    found = {name: each.clone() for name, each in cut.items() if each.shape[-1]}
    return found and {"origin": torch.tensor(origin + first)} | found


def under(key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `key/`, by what follows."""
    return {name.removeprefix(f"{key}/"): each for name, each in tensors.items() if name.startswith(f"{key}/")}


def opened(taken: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return the arrays that `Pieces.taken` gave, by suffix, and where they start."""
    arrays = {name.removeprefix("array "): each for name, each in taken.items() if name != "start"}
    return arrays, int(taken["start"])


def around(
    ring: Ring, call: Call, stretches: Sequence[Stretch], without: str = ""
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the rank and the keys of each stretch that this rank's queries see, with what goes with them."""
    axes = {name: axis for name, axis in ALONG_KEYS.items() if getattr(call, name) is not None and name != without}
    return ring.around({name: getattr(call, name) for name in axes}, axes, stretches)


def part_of(call: Call, stretch: Stretch, tensors: Mapping[str, Tensor]) -> Call:
    """Return the call of these queries and one stretch of keys."""
    document = call.document
    if document is not None:
        first = call.query_start - call.key_start
        document = document[first : first + call.num_queries]
    return dataclasses.replace(
        call,
        key=tensors["key"],
        value=tensors.get("value", tensors["key"][..., :0]),
        document=tensors.get("document"),
        key_visible=tensors.get("key_visible"),
        key_start=stretch.key_start,
        query_document=document,
        tokens=None,
        log_sum_exp=None,
    )


def refuse_what_does_not_merge(statistics: Sequence[Statistic]) -> None:
    """Raise `UsageError` that names the statistics that cannot be computed over several ranks."""
    if wrong := [s.key for s in statistics if not merges(s)]:
        raise UsageError(f"statistics that do not merge over ranks: {', '.join(wrong)}")


def merges(statistic: Statistic) -> bool:
    """Return whether a statistic of attention can be computed over several ranks."""
    if type(statistic).tally is not Statistic.tally:
        return statistic.tally().merges
    if statistic.kind == "row":
        return statistic.rows_join
    return statistic.kind == "key" or not any(each.merge in ("mean", "none") for each in statistic.arrays.values())
