"""Keys that leave a key-value cache for good: from which query on each is hidden, and what every policy shares."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import windowed_layers
from probe.hooks.attention.tap import site
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange
from probe.kernels.scores import Scores
from probe.sample import Sample

FOREVER: Final = torch.iinfo(torch.int32).max
"""Stands for the query that no prompt reaches: a key that is visible until then is never evicted."""
BLOCK_ELEMENTS: Final = 1 << 21
"""Logits that a policy looks at at once."""


@dataclass(frozen=True, eq=False)
class evicted(ScoreChange):
    """Key j of a key-value head is visible to the query at position i iff i < `until[kv_head, j]`."""

    until: Int[Tensor, "kv_head key"]
    """Position of the first query that no longer finds each key, from position 0 on; `FOREVER` for those that stay."""

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        until = self.until[:, place.key_start : place.key_start + place.num_keys]
        # Most blocks are wholly kept or wholly gone, and need no look at their single queries.
        first, last = (int(each) for each in until.aminmax())
        if first >= place.query_stop:
            return logits
        if last <= place.query_start:
            return logits.fill_(MASKED)
        gone = place.query_position[:, None] >= until[:, None]
        by_group = logits.view(len(until), -1, *logits.shape[1:])
        by_group.masked_fill_(gone[:, None], MASKED)
        return logits


@dataclass(frozen=True, eq=False)
class Kept:
    """What is known of one layer's cache, of one sample, once some tokens have gone through. Never written to."""

    until: Int[Tensor, "kv_head key"]
    """As in `evicted`, on the keys' device."""
    prompt_tokens: int
    """The prompt's length, as `PromptLengths` tells it."""
    decoded_from: int | None
    """Position of the first decoded row, which is the prompt's last token; None while there was none."""
    value: Float[Tensor, "kv_head value_channel"]
    """The last token's values, by which the sequence is known again."""
    memory: Any = None
    """What the policy itself keeps from one call to the next."""


@dataclass(frozen=True)
class Eviction(ChangeOfCalls):
    """A policy by which keys leave the cache, each key-value head for itself; what is gone stays gone.

    The keys are hidden rather than deleted: what a query then attends to is exact, the memory that a deployment would
    save is not saved. A layer with a sliding window of its own holds no more than that window, and is left alone. A
    subclass gives `evict`.

    What has been evicted is remembered by layer and sample for the block's length. A sequence must begin within the
    block; it may go on in any pieces, and go back to the prompt's end and to where its last forward began.
    """

    budget: float
    """Tokens that a key-value head keeps; below 1 a share of the prompt's tokens, rounded down, at least one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        if self.phase != "both" or self.queries is not None:
            raise UsageError(f"{who}: what has left a cache is gone for all queries; leave queries and phase out")
        check_budget(who, self.budget)

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"cache"})

    @abstractmethod
    def evict(self, before: Kept, call: Call) -> Kept:
        """Return what is kept after a call, given what was kept before it.

        `before.until` covers all the call's keys already, the new ones `FOREVER`. A new tensor of `until` may be set
        from the call's first query on. `call` is as the interventions entered before this one have left it.
        """

    def tokens(self, kept: Kept) -> int:
        """Return the budget in tokens."""
        return budget_in_tokens(self.budget, kept.prompt_tokens)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`; raises `UsageError` where no chosen layer sees its whole past."""
        chosen, windowed = self._chosen(model), windowed_layers(model)
        who, name = type(self).__name__, name_of(model)
        if named := sorted(windowed & set(self.layers or ())):
            raise UsageError(f"{who}: layers has {named}, whose cache in {name} is a sliding window already")
        if not set(chosen) - windowed:
            raise UsageError(f"{who}: every layer of {name} that it could act on has a sliding window")
        histories: dict[tuple[int, int], _History] = {}

        def change(here: site, sample: int, call: Call) -> Call:
            if not call.causal or here.layer in windowed:
                return call
            until = histories.setdefault((here.layer, sample), _History(self)).after(here, sample, call).until
            if not bool((until < call.query_start + call.num_queries).any()):
                return call
            return dataclasses.replace(call, changes=(*call.changes, evicted(until)), log_sum_exp=None)

        return change


class _History:
    """One layer's cache, of one sample, at the points that a sequence goes back to."""

    def __init__(self, policy: Eviction) -> None:
        self.policy = policy
        self.lengths = PromptLengths()
        self.points: dict[int, Kept] = {}

    def after(self, here: site, sample: int, call: Call) -> Kept:
        """Return what is kept after a call, which may follow any point that is remembered."""
        first, stop = call.query_start, call.query_start + call.num_queries
        who = type(self.policy).__name__
        if call.document is not None or call.key_start != 0:
            raise UsageError(f"{who}: layer {here.layer} sees other keys than all before it; it cannot be acted upon")
        before = self._before(who, here, sample, call)
        if call.phase == "decode" and before.decoded_from is None:
            before = dataclasses.replace(before, decoded_from=first)
        new = stop - before.until.shape[1]
        until = torch.nn.functional.pad(before.until, (0, new), value=FOREVER)
        after = self.policy.evict(dataclasses.replace(before, until=until), call)
        last = call.value[:, stop - 1].clone()
        begun = self.points.get(after.decoded_from or 0)
        self.points = {} if begun is None or after.decoded_from is None else {after.decoded_from: begun}
        self.points |= {first: before, stop: dataclasses.replace(after, value=last)}
        return after

    def _before(self, who: str, here: site, sample: int, call: Call) -> Kept:
        first = call.query_start
        if first == 0:
            nothing = torch.empty(call.num_kv_heads, 0, dtype=torch.int32, device=call.key.device)
            return Kept(nothing, self.lengths.of(here, sample, who), None, call.value[:, 0])
        before = self.points.get(first)
        if before is None or not _alike(before.value, call.value[:, first - 1]):
            raise UsageError(
                f"{who}: layer {here.layer} goes on after {first} tokens, and what was evicted of them is not known: "
                "a sequence begins within the block, and goes back no further than to the prompt's end or to where "
                "its last forward began"
            )
        if call.phase == "prefill" and before.decoded_from == first:
            return dataclasses.replace(before, decoded_from=None)
        return before


def _alike(one: Tensor, other: Tensor) -> bool:
    # A cache may be quantised anew as it grows.
    return bool((one - other).abs().max() <= 0.05 * torch.maximum(one.abs().max(), other.abs().max()))


def check_budget(who: str, budget: float) -> None:
    """Raise `UsageError` for what is neither a number of tokens nor a share."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < FOREVER:
        raise UsageError(f"{who}: budget is at least one token, or a share between 0 and 1, not {budget!r}")
    if budget > 1 and budget != int(budget):
        raise UsageError(f"{who}: budget is a whole number of tokens, or a share below 1, not {budget!r}")


def budget_in_tokens(budget: float, num_tokens: int) -> int:
    """Return a budget in tokens, for a prompt of so many."""
    return int(budget) if budget >= 1 else max(1, int(budget * num_tokens))


def logits_of_rows(call: Call, first: int, stop: int) -> Iterator[tuple[int, Float[Tensor, "head query key"]]]:
    """Yield the logits of the queries at positions `[first, stop)`, some at a time, with the first one's position.

    In float32, `MASKED` where a query does not see a key; the keys are those from position 0 to the last query's.
    """
    scores = Scores(dataclasses.replace(call, log_sum_exp=None))
    start = first
    while start < stop:
        rows = max(1, min(256, stop - start, BLOCK_ELEMENTS // (call.num_heads * (start + 1))))
        end = start + rows
        query, key = scores.query(start, end), scores.key(0, end)
        out = torch.empty(len(query), query.shape[1], end, device=query.device)
        yield start, scores.logits(query, key, start, 0, out)
        start = end


def probabilities(
    logits: Float[Tensor, "*row key"], sink_logit: Float[Tensor, "*row 1"] | None
) -> Float[Tensor, "*row key"]:
    """Return softmax over the keys, of which a learned sink takes its share."""
    if sink_logit is None:
        return logits.softmax(-1)
    return torch.cat([logits, sink_logit.to(logits)], -1).softmax(-1)[..., :-1]


def check_share(who: str, budget: float, sample: Sample, least: int) -> None:
    """Raise `UsageError` where a budget leaves a sample fewer tokens than the `least` that the policy needs."""
    found = budget_in_tokens(budget, len(sample.tokens))
    if found < least:
        raise UsageError(
            f"{who}: budget {budget} is {found} of the {len(sample.tokens)} tokens of sample {sample.name!r}, and at "
            f"least {least} are needed"
        )
