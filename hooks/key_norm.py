"""Keep the keys of smallest norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probe.hooks.attention.eviction_at_prompt_end import EvictionAtPromptEnd, Observed


@dataclass(frozen=True)
class key_norm(EvictionAtPromptEnd):
    """Keep, of a prompt, the keys whose Euclidean norm is SMALLEST: `with key_norm(256)(model):`.

    Devoto et al. (2024, arXiv 2406.11430): in the models that they looked at, keys of small norm are those that are
    attended to. The choice depends on no query, so the question never matters. The norm is of the key as it is cached:
    a rotation does not change it, a normalisation of keys (Qwen 3) leaves little of it to differ. No token is kept for
    where it stands.
    """

    def kept_keys(self, observed: Observed, budget: int) -> Int[Tensor, "kv_head kept"]:
        """See `EvictionAtPromptEnd.kept_keys`."""
        norm: Tensor = torch.linalg.vector_norm(observed.key.float(), dim=-1)
        return norm.sort(dim=-1, stable=True).indices[:, :budget]
