"""Losses of the same words after prefixes of every length, whole and disturbed, as traces of `plain_text` hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probe.finding import Interval
from probe.intervals import cluster_bootstrap
from probe.selection import LeftOut, fact, length

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

KINDS = {
    "frequent": "a tenth of the text's distinct tokens, those that stand in it most often",
    "rare": "the other tokens",
    "first of a word": "white space stands before it",
    "rest of a word": "none does",
    "last seen near": "the same token stood last within what is near",
    "last seen far": "the same token stood last farther back, within the longest prefix",
    "never seen": "the same token stands nowhere in the longest prefix",
}
"""Kinds of due tokens, and what they are; after Sun et al. 2021."""


@dataclass
class ContextLosses:
    """What was read: losses in nats, by what became of the distant part, prefix length and prompt."""

    losses: dict[tuple[str, int], dict[str, Floats]] = field(default_factory=lambda: defaultdict(dict))
    """(kept, shuffled or replaced; tokens of the prompt) → prompt → loss of each due token."""
    kinds: dict[str, dict[str, NDArray[np.bool_]]] = field(default_factory=dict)
    """Prompt → kind → which of the due tokens are of it, told by the longest prefix that was kept."""
    along: dict[str, Floats] = field(default_factory=dict)
    """Prompt → loss of each token of the longest kept prefix, the first NaN; empty where it was not captured."""
    near: int | None = None
    """Tokens right before the due ones that no condition disturbs; None where nothing was disturbed."""
    unknown: float = 0.0
    """Share of the prompts' tokens that the tokenizer does not know."""
    evidence: list[str] = field(default_factory=list)
    """Units that were read."""

    def lengths(self, distant: str = "kept") -> list[int]:
        """Return the prefix lengths at which this was read, in order."""
        return sorted(at for how, at in self.losses if how == distant)

    def difference(
        self, first: tuple[str, int], second: tuple[str, int], kind: str | None = None, seed: int = 0
    ) -> Difference | None:
        """Return how much larger the loss is in `first` than in `second`, over the prompts of both.

        The mean over prompts of the mean over a prompt's due tokens (of this kind); None where no prompt has one.
        """
        one, other = self.losses.get(first, {}), self.losses.get(second, {})
        prompts, values, num_tokens = [], [], 0
        for prompt in sorted(set(one) & set(other)):
            chosen = np.ones(len(one[prompt]), bool) if kind is None else self.kinds.get(prompt, {}).get(kind)
            if chosen is None or not chosen.any():
                continue
            prompts.append(prompt)
            values.append(float((one[prompt] - other[prompt])[chosen].mean()))
            num_tokens += int(chosen.sum())
        if not prompts:
            return None
        return Difference(np.array(values), num_tokens, cluster_bootstrap(values, prompts, seed=seed))

    def loss(self, where: tuple[str, int], seed: int = 0) -> Difference:
        """Return the loss under one condition, as `difference` returns what two differ by."""
        by_prompt = self.losses[where]
        prompts = sorted(by_prompt)
        values = [float(by_prompt[prompt].mean()) for prompt in prompts]
        tokens = sum(len(by_prompt[prompt]) for prompt in prompts)
        return Difference(np.array(values), tokens, cluster_bootstrap(values, prompts, seed=seed))


@dataclass(frozen=True)
class Difference:
    """A loss, or what two losses differ by, for each prompt; in nats a token."""

    by_prompt: Floats
    num_tokens: int
    interval: Interval | None
    """BCa, over prompts; None for one prompt."""

    @property
    def value(self) -> float:
        """The mean over prompts."""
        return float(self.by_prompt.mean())

    @property
    def n(self) -> int:
        """How many prompts."""
        return len(self.by_prompt)

    @property
    def low(self) -> float:
        """The interval's lower end; -inf for one prompt."""
        return -np.inf if self.interval is None else self.interval.low

    @property
    def high(self) -> float:
        """The interval's upper end; inf for one prompt."""
        return np.inf if self.interval is None else self.interval.high


def read_losses(traces: Iterable[Trace], left_out: LeftOut, near: int | None = None) -> ContextLosses:
    """Return the losses of every trace of `plain_text` in which nothing but the distant part was changed.

    Where the near part that was not disturbed is of several lengths, the disturbed traces of one are read: of `near`
    tokens, or of the most.
    """
    read, unknown = ContextLosses(), []
    longest: dict[str, tuple[int, Trace]] = {}
    usable = [*_usable(traces, left_out)]
    nears = {int(fact(trace, "near")) for trace, _ in usable if fact(trace, "disturbed_tokens")}
    read.near = max(nears, default=None) if near is None else near if near in nears else None
    for trace, losses in usable:
        at, distant = length(trace), str(fact(trace, "distant"))
        if distant != "kept" and read.near is not None and fact(trace, "near") != read.near:
            left_out.add("another near part was left as it was")
            continue
        prompt = f"{fact(trace, 'workload_seed')}/{fact(trace, 'seed')}"
        read.losses[distant, at][prompt] = losses
        read.evidence.append(trace.unit)
        unknown.append(float(fact(trace, "unknown_tokens") or 0.0))
        if distant == "kept" and at >= longest.get(prompt, (0, trace))[0]:
            longest[prompt] = at, trace
    read.unknown = float(np.mean(unknown)) if unknown else 0.0
    last = max(read.lengths(), default=0)
    for prompt, (at, trace) in sorted(longest.items()):
        if at == last:
            read.kinds[prompt] = _kinds(trace, at if read.near is None else read.near)
            if "loss" in trace:
                read.along[prompt] = trace["loss"].to_numpy().astype(np.float64)
    return read


def _usable(traces: Iterable[Trace], left_out: LeftOut) -> Iterator[tuple[Trace, Floats]]:
    for trace in traces:
        outcome = trace.outcome
        if fact(trace, "distant") is None:
            left_out.add("not a stretch of plain text")
        elif trace.facts.get("intervention"):
            left_out.add("the model was intervened on")
        elif fact(trace, "first_token") not in (None, "kept"):
            left_out.add("what stands first was changed")
        elif fact(trace, "disturbed_tokens") and fact(trace, "near") is None:
            left_out.add("how much was left undisturbed is not recorded")
        elif outcome is None or outcome.failed or not outcome.answer_log_probability:
            left_out.add("the words that follow have no loss")
        else:
            losses = -np.asarray(outcome.answer_log_probability, np.float64)
            if np.isfinite(losses).all():
                yield trace, losses
            else:
                left_out.add("a loss was not finite")


def _kinds(trace: Trace, near: int) -> dict[str, NDArray[np.bool_]]:
    """Return which due tokens are of which kind; nothing for a private trace, which does not say."""
    frequent, begins, seen = (fact(trace, f"target_{name}") for name in ("frequent", "begins_word", "last_seen"))
    kinds: dict[str, NDArray[np.bool_]] = {}
    if frequent is not None:
        kinds |= {"frequent": np.array(frequent, bool), "rare": ~np.array(frequent, bool)}
    if begins is not None:
        kinds |= {"first of a word": np.array(begins, bool), "rest of a word": ~np.array(begins, bool)}
    if seen is not None:
        # A token's own distance counts the due tokens before it, which are never disturbed.
        reach = near + np.arange(len(seen))
        back = np.array([np.inf if each is None else float(each) for each in seen])
        kinds |= {
            "last seen near": back <= reach,
            "last seen far": (back > reach) & np.isfinite(back),
            "never seen": np.isinf(back),
        }
    return kinds
