"""RWKV-4: an average of the values in each channel, whose older part fades, with a weight of its own for the newest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probe.hooks.recurrence.layer import RecurrentFamily, mixer_forward, scanned


class rwkv4(RecurrentFamily):
    """Mixers that call RWKV-4's linear attention.

    It keeps a numerator and a denominator in each channel; its state here is what they stand for, the average
    S = numerator / denominator, whose recurrence is S_t = (1 − g_t) S_{t−1} + g_t v_t with the new token's share
    g_t = exp(k_t) / denominator_t, so that a_t = 1 − g_t. All channels are one head, and what is read is the state
    before the token, with the token's own weight beside it.
    """

    functions = ("rwkv_linear_attention",)
    in_place = ("state",)

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Read the attention of a chunk or of one token."""
        found = []
        for call in forward.calls:
            given, (output, after) = call.arguments, call.output
            key, value, before = given["key"], given["value"], given["state"]
            # Sums of exponentials of sums: float64 keeps their digits over any chunk.
            wide = torch.float32 if key.device.type == "mps" else torch.float64
            keys, fade = key.to(wide), -given["time_decay"].to(wide).exp()
            tokens = torch.arange(keys.shape[1], device=keys.device, dtype=wide)[:, None]
            held = torch.full_like(keys[:, :1], -torch.inf)
            if before is not None:
                held = (before[1].to(wide).log() + before[2].to(wide))[:, None]
            # log of the denominator after each token, and of what is left of it when the next comes.
            weights = torch.cat([held, keys - tokens * fade], 1)
            weights[:, 0] = weights[:, 0] + fade
            total = weights.logcumsumexp(1)[:, 1:] + tokens * fade
            older = torch.cat([held, total[:, :-1]], 1)
            own = keys + given["time_first"].to(wide)
            bonus = (own - torch.logaddexp(own, older)).exp()
            ones = torch.ones_like(key[..., None, :1])
            found.append(
                scanned(
                    query=ones,
                    key=ones,
                    value=value[:, :, None],
                    gate=(keys - total).exp()[:, :, None].to(_at_least_float32(key)),
                    log_decay=(older + fade - total)[:, :, None, None],
                    bonus=bonus[:, :, None].to(_at_least_float32(key)),
                    read_gate=(1 - bonus)[:, :, None].to(_at_least_float32(key)),
                    output=output[:, :, None],
                    state_before=_average(before),
                    state_after=_average(after),
                )
            )
        return found


def _average(state: tuple[Tensor, Tensor, Tensor] | None) -> Tensor | None:
    if state is None:
        return None
    numerator, denominator, _ = state
    return torch.where(denominator == 0, 0, numerator / denominator)[:, None, None]


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
