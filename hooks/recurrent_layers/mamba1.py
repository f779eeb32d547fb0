"""Mamba: a decay for each channel and each component of its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks.recurrent_layer import RecurrentFamily, mixer_forward, scanned
from probe.hooks.recurrent_layers.mamba2 import step_size


class mamba1(RecurrentFamily):
    """Mixers that call Mamba's selective scan: Mamba's own, Falcon-Mamba's, Jamba's, Zamba's.

    Mamba has no heads: all its channels are one (in Zamba, whose channels are in heads, each of these is one). k = B,
    q = C, v = x after the convolution, g = Δ after the softplus and a = exp(Δ A), both different in every channel. The
    skip by D and the gate are not in y.
    """

    functions = ("mamba_selective_scan", "mamba_selective_state_update")
    in_place = ("state",)

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Read the scans of a chunk, or the updates by one token, of each head."""
        return [
            _chunk(call.arguments, call.output)
            if call.name == "mamba_selective_scan"
            else _step(call.arguments, call.output, call.changed["state"])
            for call in forward.calls
        ]


def _chunk(given: Mapping[str, Any], output: Any) -> scanned:
    out, after = output if isinstance(output, tuple) else (output, None)
    bias = given["delta_bias"]
    step = step_size(given["dt"], None if bias is None else bias[:, None], given["delta_softplus"])
    return _scanned(given, given["C"], given["B"], given["hidden_states"], step, given["z"], out, None, after)


def _step(given: Mapping[str, Any], output: Tensor, after: Tensor) -> scanned:
    step = step_size(given["dt"], given["dt_bias"], given["dt_softplus"])
    query, key, value = (given[name][..., None] for name in ("C", "B", "hidden_states"))
    gate = None if given["z"] is None else given["z"][..., None]
    return _scanned(given, query, key, value, step[..., None], gate, output[..., None], given["state"], after)


def _scanned(
    given: Mapping[str, Any], query: Tensor, key: Tensor, value: Tensor, step: Tensor, gate: Tensor | None,
    output: Tensor, before: Tensor | None, after: Tensor | None,
) -> scanned:  # fmt: skip
    """Everything comes as batch × channel (or state) × token."""
    step = step.transpose(1, 2)[:, :, None]
    skip = given["D"]
    return scanned(
        query=query.transpose(1, 2)[:, :, None],
        key=key.transpose(1, 2)[:, :, None],
        value=value.transpose(1, 2)[:, :, None],
        gate=step,
        log_decay=step[..., None, :],
        rate=given["A"].T[None],
        output=output.transpose(1, 2)[:, :, None],
        state_before=None if before is None else before.transpose(-1, -2)[:, None],
        state_after=None if after is None else after.transpose(-1, -2)[:, None],
        skip=None if skip is None else skip[None],
        output_gate=None if gate is None else torch.nn.functional.silu(gate).transpose(1, 2)[:, :, None],
    )
