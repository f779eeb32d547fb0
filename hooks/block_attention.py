"""Attention knockout: what one stretch of the text may not see of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.layers import layer_windows
from probe.hooks.attention.tap import site
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.sample_read import sample_read
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange
from probe.kernels.visibility import Visibility
from probe.sample import Sample

Range = tuple[int, int]
Stretches = str | Range | Sequence[str | Range]


@dataclass(frozen=True)
class block_attention(ChangeOfCalls):
    """Queries of one stretch see no keys of another: `block_attention("needle", "question")(model)`.

    Attention knockout of Geva et al. (2023, arXiv 2304.14767): the logit of every such pair of query and key becomes
    minus infinity before the softmax, so that the others share what is left. The authors block a window of layers
    around each one in turn (`layers`), and the last position's queries (`phase="decode"`: from the prompt's last token
    on). What a blocked stretch says may still arrive by way of positions that are not blocked, in an earlier layer:
    with all layers, block all that stand between as well, or speak of the direct way alone.

    A stretch is a name of the sample's spans (each span of that name), or a range of positions, or several of these. A
    query that stands in both stretches loses its own key too. A query that would be left no key is refused, since no
    softmax is defined over none: by name where the keys begin with the prompt, or fill a layer's window. Names need a
    sample (`probe.trace`, a casebook); in a forward by hand give positions.
    """

    keys_of: Stretches
    """What may not be seen: names of spans, or half-open ranges of positions."""
    queries_of: Stretches | None = None
    """Who may not see it; None for every query (within `queries` and `phase`), those of the answer included, which no
    span of the prompt names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keys_of", _stretches("keys_of", self.keys_of))
        if self.queries_of is not None:
            object.__setattr__(self, "queries_of", _stretches("queries_of", self.queries_of))

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`: its spans must be there, with a pair to block, and leave every query a key."""
        stop = len(sample) + sample.num_new_tokens - 1
        keys = _inside(self._ranges("keys_of", sample), 0, stop)
        queries = _inside(self._ranges("queries_of", sample), 0, stop)
        first = len(sample) - 1
        queries &= _inside((self.queries or (0, stop),), 0, stop)
        if self.phase != "both":
            queries &= _inside(((first, stop) if self.phase == "decode" else (0, first),), 0, stop)
        at = queries.nonzero().flatten()
        if not len(at) or not bool(keys[: int(at[-1]) + 1].any()):
            raise UsageError(
                f"block_attention: in {sample.name!r} no query of queries_of comes after a key of keys_of, so that "
                "there is nothing to block"
            )
        windows = layer_windows(transformers_model_of(model))
        wanted = self.layers if self.heads is None else {layer for layer, _ in self.heads}
        for layer, window in windows.items():
            if wanted is None or layer in wanted:
                begin = torch.zeros_like(at) if window is None else (at - window + 1).clamp(min=0)
                self._refuse_none_left(layer, at, begin, at + 1, ~keys, 0)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""

        def change(here: site, sample: int, call: Call) -> Call:
            queries, keys = self._ranges("queries_of"), self._ranges("keys_of")
            stop = call.query_start + call.num_queries
            rows = _inside(queries, call.query_start, stop)
            columns = _inside(keys, call.key_start, call.key_start + call.num_keys)
            if not bool(rows.any()) or not bool(columns.any()):
                return call
            seen = Visibility.of(call)
            at = rows.nonzero().flatten()
            left = ~columns if seen.key_visible is None else ~columns & seen.key_visible
            acts = at[seen.num_keys[at] > 0]
            if self.queries is not None:
                position = acts + call.query_start
                acts = acts[(position >= self.queries[0]) & (position < self.queries[1])]
            self._refuse_none_left(
                call.layer, acts + call.query_start, seen.first[acts], seen.stop[acts], left, call.key_start
            )
            blocked = _blocked(rows.to(call.query.device), columns.to(call.query.device))
            return dataclasses.replace(call, changes=(*call.changes, blocked), log_sum_exp=None)

        return change

    def _ranges(self, field: str, sample: Sample | None = None) -> tuple[Range, ...]:
        """Return the positions that a field means, in the sample that is given or being read."""
        given: Any = getattr(self, field)
        if given is None:
            return ((0, 2**62),)
        sample = sample_read() if sample is None and any(isinstance(each, str) for each in given) else sample
        ranges: list[Range] = []
        for each in given:
            if not isinstance(each, str):
                ranges.append(each)
                continue
            if sample is None:
                raise UsageError(
                    f"block_attention: {field} names the span {each!r}, and this forward is of no sample that would "
                    "have it; give a range of positions, or read a sample with probe.trace"
                )
            named = [(span.start, span.stop) for span in sample.spans if span.name == each]
            if not named:
                raise UsageError(
                    f"block_attention: {field} names the span {each!r}, and {sample.name!r} has "
                    f"{', '.join(sorted({span.name for span in sample.spans})) or 'none'}"
                )
            ranges += named
        return tuple(ranges)

    def _refuse_none_left(
        self,
        layer: int,
        query: Int[Tensor, "query"],
        first: Int[Tensor, "query"],
        stop: Int[Tensor, "query"],
        left: Bool[Tensor, "key"],
        key_start: int,
    ) -> None:
        """Raise where a query's keys [first, stop) are all blocked; `left` are those that are not, from `key_start`."""
        before = torch.nn.functional.pad(left.cumsum(0), (1, 0))
        none = (before[stop - key_start] == before[first - key_start]).nonzero().flatten()
        if len(none):
            i = int(none[0])
            raise UsageError(
                f"block_attention: keys_of would leave the query at position {int(query[i])} none of the keys that "
                f"layer {layer} lets it see (positions {int(first[i])} to {int(stop[i]) - 1}); leave one, or the layer "
                "out"
            )


@dataclass(frozen=True, eq=False)
class _blocked(ScoreChange):
    rows: Bool[Tensor, "query"]
    columns: Bool[Tensor, "key"]

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        hidden = self.rows[place.rows][:, None] & self.columns[place.columns]
        return logits.masked_fill_(hidden, MASKED)


def _inside(ranges: Sequence[Range], start: int, stop: int) -> Bool[Tensor, "position"]:
    """Return which of the positions [start, stop) lie in one of the ranges."""
    found = torch.zeros(stop - start, dtype=torch.bool)
    for first, last in ranges:
        found[max(first - start, 0) : max(min(last, stop) - start, 0)] = True
    return found


def _stretches(field: str, given: Any) -> tuple[str | Range, ...]:
    """Return names and ranges as a tuple of them; raises `UsageError` naming the field for anything else."""
    alone = isinstance(given, str) or _is_range(given)
    each_of = [given] if alone else list(given) if isinstance(given, Sequence) else []
    made: list[Any] = [(int(each[0]), int(each[1])) if _is_range(each) else each for each in each_of]
    if not all(_is_range(each) or (isinstance(each, str) and each) for each in made):
        made = []
    if not made:
        raise UsageError(
            f"block_attention: {field} is the name of a span, a range [start, stop) of positions, or several of these, "
            f"not {given!r}"
        )
    return tuple(made)


def _is_range(given: Any) -> bool:
    whole = isinstance(given, Sequence) and len(given) == 2 and all(isinstance(each, int) for each in given)
    return whole and 0 <= given[0] < given[1]
