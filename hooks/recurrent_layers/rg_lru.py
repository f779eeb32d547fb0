"""RG-LRU: Griffin's recurrent unit, with a decay and an input gate in each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks.recurrence.layer import RecurrentFamily, mixer_forward, scanned

_PARAMETERS = (
    "recurrent_param",
    "input_gate_weight",
    "input_gate_bias",
    "recurrent_gate_weight",
    "recurrent_gate_bias",
)


class rg_lru(RecurrentFamily):
    """Modules with RG-LRU's parameters: RecurrentGemma's.

    The heads are the blocks of its gates; a state has one component for each channel. v is the input,
    g = √(1 − a²) · input gate, and at the first token of a sequence a = 0 and the root is taken as 1.
    """

    def recognises(self, module: nn.Module) -> bool:
        """Return whether the module has RG-LRU's parameters."""
        return all(isinstance(getattr(module, name, None), nn.Parameter) for name in _PARAMETERS)

    def before(self, module: Any, given: Mapping[str, Any]) -> Tensor | None:
        """Return the state that it will go on from."""
        state: Tensor | None = module.recurrent_states
        return None if state is None else state.clone()

    def read(self, module: Any, forward: mixer_forward) -> list[scanned]:
        """Compute its gates once more from its input."""
        value = forward.given["activations"]
        heads = module.num_attention_heads
        value = value.reshape(*value.shape[:2], heads, -1)
        first = (forward.given["position_ids"] == 0)[:, :, None, None]
        input_gate = _gate(value, module.input_gate_weight, module.input_gate_bias)
        recurrent_gate = _gate(value, module.recurrent_gate_weight, module.recurrent_gate_bias)
        log_decay = -8.0 * recurrent_gate * nn.functional.softplus(module.recurrent_param).reshape(heads, -1)
        root = torch.where(first, 1.0, (1 - (2 * log_decay).exp()).clamp_min(0).sqrt())
        ones = torch.ones_like(value[:, :, :1, :1])

        def in_heads(state: Tensor | None) -> Tensor | None:
            return None if state is None else state.reshape(state.shape[0], heads, 1, -1)

        return [
            scanned(
                query=ones,
                key=ones,
                value=value,
                gate=root.to(value.dtype) * input_gate,
                log_decay=log_decay.float().masked_fill(first, -torch.inf)[..., None, :],
                output=forward.output.reshape(value.shape),
                state_before=in_heads(forward.before),
                state_after=in_heads(module.recurrent_states),
            )
        ]


def _gate(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.sigmoid(torch.einsum("bthi,hij->bthj", value, weight) + bias)
