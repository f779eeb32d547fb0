"""What `effective_length` says of its counts, in words no surer than they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from probe.analyses.figures.lengths import Rate
from probe.analyses.measures.source_looks import SourceHits
from probe.finding import Comparison, Verdict
from probe.intervals import FEWEST_PROMPTS, p_text

GUESSING = 0.1
"""Share of right answers with the needle left out, below which a model is said not to guess."""


@dataclass(frozen=True)
class LengthAnswer:
    """The answer to `effective_length`'s question, from which headline and claim are worded."""

    rates: Mapping[str, Mapping[int, Rate]]
    reach: int
    """The effective length; 0 where the shortest fails."""
    failure: int | None
    """The first length that fails; None where none does."""
    threshold: float
    verdict: Verdict
    against_gold: Comparison | None
    hits: SourceHits | None

    @property
    def headline(self) -> str:
        baseline, failure = self.rates["baseline"], self.failure
        lengths = list(baseline)
        tried = "at every length tried, up to" if len(lengths) > 1 else "at the one length tried,"
        if failure is None:
            if self.verdict == "refuted":
                return f"It finds the needle {tried} {self.reach:,} tokens"
            return f"No failure seen up to {self.reach:,} tokens, but too few prompts to tell"
        if self.verdict == "inconclusive":
            on = " on" if failure < lengths[-1] else ""
            return f"It may lose the needle {'from' if on else 'at'} {failure:,} tokens{on}: too few prompts to tell"
        back = self._back
        if back is not None:
            return f"It fails at {failure:,} tokens, though not at {back:,}"
        if not self.reach:
            if len(lengths) == 1:
                return f"It fails {tried} {failure:,} tokens"
            return f"It fails from the shortest length on, {failure:,} tokens"
        certain = self._certain
        if certain is not None and sum(baseline[at].n for at in lengths if at <= self.reach) < FEWEST_PROMPTS:
            return f"It has lost the needle by {certain:,} tokens: too few prompts to tell up to where it finds it"
        if certain is not None and certain > failure:
            return f"It finds the needle up to {self.reach:,} tokens and has lost it by {certain:,}"
        on = " on" if failure < lengths[-1] else ""
        return f"It finds the needle up to {self.reach:,} tokens and loses it {'from' if on else 'at'} {failure:,}{on}"

    @property
    def claim(self) -> str:
        baseline, failure = self.rates["baseline"], self.failure
        lengths = list(baseline)
        if failure is None:
            if self.verdict != "refuted":
                return f"{self.headline} ({_said(baseline[self.reach])} at {self.reach:,})."
            return f"{self.headline} ({_said(baseline[self.reach])})."
        lost, longest = baseline[failure], lengths[-1]
        later = f"; {_counts(baseline[longest])} at {longest:,}" if longest > failure and self._back is None else ""
        first = f"{self.headline} ({_said(lost)} at {failure:,}{later})"
        if self._back is not None:
            first = f"{self.headline} ({_said(lost)}, then {_said(baseline[self._back])})"
        elif self.reach and self.verdict == "supported":
            found = f"up to {self.reach:,} tokens"
            first = first.replace(found, f"{found} ({_said(baseline[self.reach])})", 1)
        why = ", ".join(self._why())
        parts = [f"{first}; {why}" if why else first]
        if self.hits is not None:
            parts += self._looks(self.hits, failure, longest)
        return "; ".join(parts) + "."

    @property
    def _back(self) -> int | None:
        """The first length beyond the failure that does not fail; None where none does."""
        rates, failure = self.rates["baseline"], self.failure
        beyond = (at for at in rates if failure is not None and at > failure)
        return next((at for at in beyond if rates[at].share >= self.threshold), None)

    @property
    def _certain(self) -> int | None:
        """The first length that fails with 95 % certainty."""
        rates = self.rates["baseline"]
        return next((at for at in rates if rates[at].interval.high < self.threshold), None)

    def _why(self) -> Iterator[str]:
        """Yield what the controls say: whether it guesses, and whether it fails to find or to answer."""
        absent = sum(self.rates["needle_absent"].values(), Rate(0, 0))
        if absent.n:
            if absent.interval.high < GUESSING:
                yield f"it is not guessing (needle left out: {_counts(absent)})"
            elif absent.interval.low > GUESSING:
                yield f"it may be guessing (needle left out: {_said(absent)})"
            else:
                yield f"whether it guesses cannot be told (needle left out: {_said(absent)})"
        gold_rates = self.rates["gold_only"]
        failing = [rate for at, rate in gold_rates.items() if self.failure is not None and at >= self.failure]
        gold = sum(failing or gold_rates.values(), Rate(0, 0))
        if gold.n:
            yield self._finds_or_answers(gold)

    def _finds_or_answers(self, gold: Rate) -> str:
        alone = f"sentence alone: {_counts(gold)}"
        if gold.share < self.threshold:
            if gold.interval.high < self.threshold:
                return f"but it cannot answer reliably even from the sentence alone ({_said(gold)})"
            return f"but it may not be able to answer even from the sentence alone ({_said(gold)})"
        test = self.against_gold
        if test is None or test.p_value is None or test.difference is None or test.difference >= 0:
            return f"and it can answer ({alone})"
        p = p_text(test.p_value)
        if test.p_value < 0.05 and self.verdict == "supported":
            return f"and it can answer ({alone}, {p} paired), so it fails to find, not to answer"
        if test.p_value > 0.2:
            return f"and whether it fails to find or to answer cannot be told ({alone}, {p})"
        return f"and it can answer ({alone}), which suggests that it fails to find rather than to answer ({p})"

    def _looks(self, hits: SourceHits, failure: int, longest: int) -> Iterator[str]:
        if failure in hits.by_length and self.reach in hits.by_length and longest in hits.by_length:
            looks = [f"{100 * hits.by_length[self.reach][0]:.0f} % of the time at {self.reach:,} tokens"]
            looks += [f"{100 * hits.by_length[at][0]:.0f} % at {at:,}" for at in dict.fromkeys((failure, longest))]
            heads = f"its {len(hits.heads)} retrieval heads look" if len(hits.heads) > 1 else "its retrieval head looks"
            yield f"{heads} at the right token {', '.join(looks[:-1])} and {looks[-1]}"


def _counts(rate: Rate) -> str:
    return f"{rate.right} of {rate.n} right"


def _said(rate: Rate) -> str:
    ends = f"[{100 * rate.interval.low:.0f}, {100 * rate.interval.high:.0f}]"
    return f"{100 * rate.share:.0f} % right {ends}, n = {rate.n}"
