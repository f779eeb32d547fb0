"""mLSTM: linear attention with an exponential input gate, held in reach of floating point by a running maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from probe.hooks.recurrence.layer import RecurrentFamily, mixer_forward, scanned

_PARTS = ("chunkwise_kernel_fn", "sequence_kernel_fn", "step_kernel_fn")


class mlstm(RecurrentFamily):
    """Modules that hold mLSTM's three kernels: xLSTM's.

    With the running maximum m_t = max(log f_t + m_{t−1}, i_t) of its gates, its state is the one it keeps,
    C = the true one · exp(−m), so that a_t = exp(log f_t + m_{t−1} − m_t) and g_t = exp(i_t − m_t). What is read is
    divided by what the normaliser n, which has the same recurrence with values 1, says at the query.
    """

    def recognises(self, module: nn.Module) -> bool:
        """Return whether the module has the kernels."""
        return all(hasattr(module, name) for name in _PARTS)

    def read(self, module: Any, forward: mixer_forward) -> list[scanned]:
        """Read a call of the kernels."""
        given, output = forward.given, forward.output
        heard, after = output if isinstance(output, tuple) else (output, None)
        wide = torch.promote_types(given["value"].dtype, torch.float32)
        key, value, heard = (each.transpose(1, 2) for each in (given["key"], given["value"], heard))
        query = given["query"].transpose(1, 2) * given["query"].shape[-1] ** -0.5
        forget, opened = logsigmoid(given["fgate"].to(wide)), given["igate"].to(wide)
        states = [given.get(name) for name in ("c_initial", "n_initial", "m_initial")]
        before, norm, maximum = (None if state is None else state.to(wide) for state in states)
        first = torch.zeros_like(opened[..., :1]) if maximum is None else maximum.reshape(*opened.shape[:2], 1)
        maxima, decay, gate = _stabilised(forget, opened, first)
        norm = torch.zeros_like(key[:, 0], dtype=wide) if norm is None else norm
        divisor = _normaliser(query.to(wide), key.to(wide), decay.exp(), gate, norm)
        divisor = torch.maximum(divisor.abs(), (-maxima).exp()) + module.config.eps
        return [
            scanned(
                query=query,
                key=key,
                value=value,
                gate=gate.transpose(1, 2)[..., None],
                log_decay=decay.transpose(1, 2)[..., None, None],
                read_gate=(1 / divisor).transpose(1, 2)[..., None],
                output=heard,
                state_before=before,
                state_after=None if after is None else after[0],
            )
        ]


def _stabilised(forget: Tensor, opened: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return m, log a and g, [batch, head, token]."""
    exact = torch.float32 if forget.device.type == "mps" else torch.float64
    passed = forget.to(exact).cumsum(-1)
    largest = torch.maximum((opened.to(exact) - passed).cummax(-1).values, first.to(exact)) + passed
    before = torch.cat([first.to(exact), largest[..., :-1]], -1)
    decay, gate = forget.to(exact) + before - largest, (opened.to(exact) - largest).exp()
    return largest.to(forget.dtype), decay.to(forget.dtype), gate.to(forget.dtype)


def _normaliser(query: Tensor, key: Tensor, decay: Tensor, gate: Tensor, norm: Tensor) -> Tensor:
    """Return q_t · n_t, [batch, head, token], from queries and keys [batch, token, head, state]."""
    found = []
    for t in range(key.shape[1]):
        norm = decay[..., t, None] * norm + gate[..., t, None] * key[:, t]
        found.append((query[:, t] * norm).sum(-1))
    return torch.stack(found, -1)
