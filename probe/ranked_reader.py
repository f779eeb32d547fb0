"""One sample going through a model together with other ranks; rank 0 writes the trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from probe.errors import UsageError
from probe.hooks.models.over_ranks import OverRanks
from probe.kernels.non_finite_heads import NonFiniteHead
from probe.kernels.ranked_scan import RankedScan, refuse_what_does_not_merge
from probe.kernels.ranked_token_scan import RankedTokenScan
from probe.kernels.scan import Scan
from probe.kernels.statistic import Statistic
from probe.reader import Reader

_SIDES = ("query", "key")


class RankedReader(Reader):
    """Reads one sample over ranks, each of which has a stretch of the prompt."""

    model: OverRanks

    def __init__(self, model: Any, sample: Any, requests: Sequence[Any], *arguments: Any) -> None:
        """Prepare; raises UsageError for statistics that are not computed over ranks, by name."""
        refuse_what_does_not_merge([r.statistic for r in requests if r.statistic.kind in ("scan", "row", "key")])
        if wrong := [
            r.statistic.key
            for r in requests
            if r.statistic.kind in ("residual", "recurrence") or r.statistic.needs_logit_direction or r.keeps_vectors
        ]:
            raise UsageError(f"statistics that are not read over ranks: {', '.join(wrong)}")
        super().__init__(model, sample, requests, *arguments)
        self.ring = self.model.ring
        start, _ = self.model.stretch(len(sample.tokens) - 1)
        self.tokens = self._own_tokens = RankedTokenScan(
            self.tokens.statistics, self.ring, token_start=1 + start, pool_tokens=self.pool_tokens
        )

    def finish(self) -> None:
        """Bring together what the ranks have; rank 0 writes it."""
        super().finish()
        self.writer.note(non_finite=[dataclasses.asdict(head) for head in self._bad_heads()])

    def _prompt(self, chunk_tokens: int) -> tuple[Any, int]:
        found = super()._prompt(chunk_tokens)
        nats = torch.tensor([self.nats], dtype=torch.float64).view(torch.int64)
        own = torch.cat([nats, torch.tensor([self.num_predicted, int(self.finite)])])
        every = torch.stack(self.ring.everywhere(own, [3] * self.ring.size))
        self.nats = float(every[:, 0].contiguous().view(torch.float64).sum())
        self.num_predicted, self.finite = int(every[:, 1].sum()), bool(every[:, 2].all())
        # What is decoded is the last rank's; the others see its logits too.
        self._own_tokens.rests = self.ring.rank + 1 < self.ring.size
        return found

    def _new_scan(self, statistics: Sequence[Statistic]) -> Scan:
        return RankedScan(
            statistics,
            self.ring,
            spans=self.spans,
            pool_tokens=self.pool_tokens,
            engine=self.reading.scan,
            deterministic=self.reading.deterministic,
        )

    def _where_not_finite(self, *sequences: list[int]) -> str:
        return "NaN or infinity in the logits"

    def _bad_heads(self) -> list[NonFiniteHead]:
        """Return which heads of any rank have queries or keys that are not finite."""
        found = [head for heads in self.bad.values() for head in heads.found]
        rows = [[h.layer, _SIDES.index(h.side), h.head, h.num_values, h.first_position] for h in found]
        own = torch.tensor(rows, dtype=torch.int64).flatten()
        lengths = [int(each) for each in self.ring.everywhere(torch.tensor([len(own)]), [1] * self.ring.size)]
        together: dict[tuple[int, int, int], tuple[int, int]] = {}
        for each in self.ring.everywhere(own, lengths):
            for layer, side, head, num, first in each.view(-1, 5).tolist():
                before = together.get((layer, side, head), (0, first))
                together[layer, side, head] = before[0] + num, min(before[1], first)
        return [
            NonFiniteHead(layer, "key" if side else "query", head, num, first)
            for (layer, side, head), (num, first) in sorted(together.items())
        ]
