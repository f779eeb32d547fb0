"""Keep the keys that the prompt's last queries attend to (SnapKV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.eviction import check_share
from probe.hooks.attention.eviction_at_prompt_end import EvictionAtPromptEnd, Observed
from probe.sample import Sample

Pool = Literal["average", "max"]
Group = Literal["mean", "max"]


@dataclass(frozen=True)
class snapkv(EvictionAtPromptEnd):
    """Keep what the last queries of a prompt look at: `with snapkv(256)(model):`.

    The attention that the last `window` queries give to each key before them is summed, pooled over `kernel`
    neighbouring keys, and each head keeps the largest, and the window: `budget` tokens in all. Li et al. (2024, arXiv
    2404.14469; the authors' code), who choose for each query head; here query heads that share a key-value head choose
    together (`group`), as NVIDIA's kvpress does it, so that memory is what the budget says. The choice depends on the
    question where it stands within the window, and not where it stands before: a report says which.
    """

    window: int = 32
    """Queries that are observed, and tokens that are kept whatever they are worth; the authors' default."""
    kernel: int = 5
    """Neighbouring keys over which attention is pooled, an odd number; the authors' default. 1 does not pool."""
    pool: Pool = "average"
    """`average` over the kernel, beyond the ends as if of zeros (the authors' default), or the `max` within it."""
    group: Group = "mean"
    """How the query heads of a key-value head agree: by their `mean` (kvpress) or their `max`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UsageError(f"snapkv: window is at least 1, not {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"snapkv: kernel is an odd number, at least 1, not {self.kernel}")
        for name, kinds in (("pool", Pool), ("group", Group)):
            if getattr(self, name) not in get_args(kinds):
                raise UsageError(f"snapkv: {name} is {getattr(self, name)!r}; expected {', '.join(get_args(kinds))}")
        if 1 <= self.budget <= self.window:
            raise UsageError(f"snapkv: budget {self.budget} has no room beside the window of {self.window}")

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        check_share("snapkv", self.budget, sample, self.window + 1)

    @property
    def num_observed(self) -> int:
        """See `EvictionAtPromptEnd.num_observed`."""
        return self.window

    def kept_keys(self, observed: Observed, budget: int) -> Int[Tensor, "kv_head kept"]:
        """See `EvictionAtPromptEnd.kept_keys`."""
        before = observed.end - self.window
        if budget <= self.window:
            raise UsageError(f"snapkv: budget {self.budget} is {budget} tokens, no more than the window {self.window}")
        received = observed.call.query.new_zeros(observed.call.num_heads, before, dtype=torch.float32)
        for rows in observed.rows(self.window):
            received += rows[..., :before].sum(1)
        beside = self.kernel // 2
        if self.pool == "average":
            pooled = torch.nn.functional.avg_pool1d(received, self.kernel, stride=1, padding=beside)
        else:
            pooled = torch.nn.functional.max_pool1d(received, self.kernel, stride=1, padding=beside)
        by_group = pooled.unflatten(0, (observed.call.num_kv_heads, -1))
        score = by_group.mean(1) if self.group == "mean" else by_group.amax(1)
        best = score.sort(dim=-1, descending=True, stable=True).indices[:, : budget - self.window]
        window = torch.arange(before, observed.end, device=best.device).expand(len(best), -1)
        return torch.cat([best, window], -1)
