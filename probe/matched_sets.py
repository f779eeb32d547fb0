"""The random heads that a control removes, drawn to match those that a condition removes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.finding import Finding
from probe.plan import Heads
from probe.sample import Sample

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel


@dataclass
class MatchedSets:
    """Draws sets of heads of the same layers, number and like output norm; norms are measured once."""

    model: HuggingFaceModel
    samples: Callable[[], Sequence[Sample]]
    """Makes the workload's samples; norms are measured on the shortest of those that heads are found with."""
    findings: Mapping[str, Finding]
    """What was found so far: heads that a finding suggests are never a control."""
    seed: int
    """Seed of the draws."""
    _norms: Any = None

    def draw(self, heads: Heads, draws: int) -> list[tuple[Heads, float]]:
        """Return `draws` sets that match `heads`, each with its mean output norm over theirs."""
        from probe.hooks.attention.head_output_norm import head_output_norm
        from probe.hooks.matched_heads import matched_heads

        if self._norms is None:
            found = [s for s in self.samples() if s.facts["half"] == "find"]
            shortest = min(int(s.facts["length"]) for s in found)
            self._norms = head_output_norm(
                self.model, [s.tokens for s in found if int(s.facts["length"]) == shortest][:8]
            )
        norms = self._norms
        drawn = matched_heads(heads, norms, exclude=self._never_control(heads), draws=draws, seed=self.seed)

        def mean(chosen: Heads) -> float:
            return float(sum(norms[layer, head] for layer, head in chosen) / len(chosen))

        # Rounded, since it goes into what a unit is, and the last bits of a norm are the machine's own.
        return [(each, round(mean(each) / mean(heads), 3)) for each in drawn]

    def _never_control(self, heads: Heads) -> Heads:
        """Return the heads that no control may hold: those removed, and every one that a finding suggests."""
        suggestions = [suggestion for finding in self.findings.values() for suggestion in finding.suggests]
        suggested: list[Any] = [s.fields["heads"] for s in suggestions if "heads" in s.fields]
        pairs = {(int(layer), int(head)) for group in suggested for layer, head in group}
        return tuple(sorted({*heads, *pairs}))
