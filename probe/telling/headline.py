"""The diagnosis in a few sentences: the claims that a reader should meet first."""

from __future__ import annotations

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
        """The diagnosis: claims with a value and a verdict, most important first."""
        return [finding.claim for finding in ranked(self.findings) if _settled(finding)][: self.num_sentences]

    @property
    def open_questions(self) -> list[str]:
        """Questions whose answer is inconclusive, or whose value is missing."""
        return [finding.question for finding in ranked(self.findings) if not _settled(finding)]


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings in the order in which a reader should meet them, what is not settled last."""
    order = sorted(findings, key=lambda f: _FIRST.index(f.analysis) if f.analysis in _FIRST else len(_FIRST))
    return sorted(order, key=lambda finding: not _settled(finding))


def _settled(finding: Finding) -> bool:
    return finding.verdict != "inconclusive" and finding.measured.value is not None
