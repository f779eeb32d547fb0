"""The diagnosis in a few sentences: the claims that a reader should meet first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from probe.finding import Finding

_FIRST = ("effective_length", "head_ablation", "retrieval_heads", "position_bias", "attention_sinks")
"""What is wrong, then what causes it, then where, then what goes with it. Other analyses follow in their order."""


@dataclass(frozen=True)
class headline:
    """A run's findings, sorted into what was found and what was not settled."""

    findings: Sequence[Finding]
    """The run's findings, in the casebook's order."""
    num_sentences: int = 4
    """Most claims in the diagnosis."""

    @property
    def claims(self) -> list[str]:
        """The diagnosis: claims with a finite value and a verdict, most important first."""
        settled = [finding for finding in self._ranked() if self._finite(finding) and finding.verdict != "inconclusive"]
        return [finding.claim for finding in settled[: self.num_sentences]]

    @property
    def open_questions(self) -> list[str]:
        """Questions whose answer is inconclusive, or whose value is missing or not finite."""
        return [f.question for f in self._ranked() if f.verdict == "inconclusive" or not self._finite(f)]

    def _ranked(self) -> list[Finding]:
        return sorted(self.findings, key=lambda f: _FIRST.index(f.analysis) if f.analysis in _FIRST else len(_FIRST))

    @staticmethod
    def _finite(finding: Finding) -> bool:
        numbers: list[float | None] = [finding.measured.value]
        if finding.measured.interval is not None:
            numbers += [finding.measured.interval.low, finding.measured.interval.high]
        return all(number is not None and math.isfinite(number) for number in numbers)
