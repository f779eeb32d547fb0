"""Lightning attention: linear attention with a constant decay for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks.recurrence.layer import RecurrentFamily, mixer_forward, scanned


class lightning(RecurrentFamily):
    """Modules with lightning attention's projections and slopes: MiniMax's.

    q, k and v are their activated projections, g = 1, and a = exp(−slope), the same at every token.
    """

    inner = ("norm",)

    def recognises(self, module: nn.Module) -> bool:
        """Return whether the module has lightning attention's parts."""
        return all(hasattr(module, name) for name in ("slope_rate", "qkv_proj", "act_fn", "norm", "output_gate"))

    def before(self, module: Any, given: Mapping[str, Any]) -> Tensor | None:
        """Return the state that it will go on from."""
        cache = given.get("past_key_values")
        state = None if cache is None else cache.get_linear_cache(module.layer_idx)
        return state if isinstance(state, Tensor) else None

    def read(self, module: Any, forward: mixer_forward) -> list[scanned]:
        """Compute queries, keys and values once more from its input."""
        hidden, mask = forward.given["hidden_states"], forward.given.get("attention_mask")
        projected = module.act_fn(module.qkv_proj(hidden))
        if mask is not None:
            projected = (projected * mask[:, :, None]).to(projected.dtype)
        projected = projected.reshape(*hidden.shape[:2], module.num_attention_heads, -1)
        query, key, value = projected.split(module.head_dim, -1)
        ones = torch.ones_like(value[..., :1])
        return [
            scanned(
                query=query,
                key=key,
                value=value,
                gate=ones,
                log_decay=(-module.slope_rate.reshape(1, 1, -1, 1, 1)).expand(*value.shape[:3], 1, 1),
                output=forward.inputs["norm"].reshape(value.shape),
                state_before=forward.before,
                state_after=forward.output[1],
            )
        ]
