"""Mamba-2: a scalar decay for each head, and keys and queries (B and C) that groups of heads share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probe.hooks.recurrence.layer import RecurrentFamily, function_call, mixer_forward, scanned


class mamba2(RecurrentFamily):
    """Mixers that call Mamba-2's scan: Mamba-2's own, Bamba's, Falcon-H1's, Granite's, Nemotron-H's, Zamba-2's.

    k = B, q = C, v = x after the convolution, g = Δ after the softplus, a = exp(Δ A). The skip by D is not in y.
    """

    functions = ("mamba2_chunk_scan", "mamba2_selective_state_update")
    in_place = ("state", "initial_states")

    def why_unchangeable(self, module: nn.Module) -> str:
        """Every one can be changed."""
        return ""

    def scanned_by(self, call: function_call) -> scanned:
        """Read the scan of a chunk, or the update by one token."""
        if call.name == "mamba2_chunk_scan":
            return _chunk(call.arguments, call.output)
        return _step(call.arguments, call.output, call.changed["state"])

    def instead(self, call: function_call, output: Tensor, state: Tensor) -> Any:
        """See `RecurrentFamily.instead`."""
        if call.name != "mamba2_chunk_scan":
            call.changed["state"].copy_(state.transpose(-1, -2))
            return output[:, 0].to(call.output.dtype)
        if not isinstance(call.output, tuple):
            return output.to(call.output.dtype)
        return output.to(call.output[0].dtype), state.transpose(-1, -2).to(call.output[1].dtype).contiguous()

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Read the scan of a chunk, or the update by one token."""
        return [self.scanned_by(call) for call in forward.calls]


def _chunk(given: Mapping[str, Any], output: Any) -> scanned:
    out, after = output if isinstance(output, tuple) else (output, None)
    step = step_size(given["dt"], given["dt_bias"], given["dt_softplus"]).clamp(*given["dt_limit"])
    skip, before = given["D"], given["initial_states"]
    return scanned(
        query=given["C"],
        key=given["B"],
        value=given["hidden_states"],
        gate=step[..., None],
        log_decay=step[..., None, None],
        rate=given["A"][:, None, None],
        output=out,
        state_before=None if before is None else before.transpose(-1, -2),
        state_after=None if after is None else after.transpose(-1, -2),
        skip=None if skip is None else skip[:, None],
        output_gate=_gate(given.get("z"), out),
    )


def _step(given: Mapping[str, Any], output: Tensor, after: Tensor) -> scanned:
    # Step size, A, D and the bias are repeated over a head's channels here.
    bias = given["dt_bias"]
    step = step_size(given["dt"][..., 0], None if bias is None else bias[..., 0], given["dt_softplus"])[:, None]
    return scanned(
        query=given["C"][:, None],
        key=given["B"][:, None],
        value=given["hidden_states"][:, None],
        gate=step[..., None],
        log_decay=step[..., None, None],
        rate=given["A"][:, :1, :1],
        output=output[:, None],
        state_before=given["state"].transpose(-1, -2),
        state_after=after.transpose(-1, -2),
        skip=given["D"],
        output_gate=_gate(given["z"], output[:, None]),
    )


def step_size(step: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """Return Δ as the scans compute it, in the dtype in which they do."""
    step = step if bias is None else step + bias.to(step.dtype)
    return torch.nn.functional.softplus(step) if softplus else step


def _gate(gate: Tensor | None, output: Tensor) -> Tensor | None:
    return None if gate is None else torch.nn.functional.silu(gate).reshape(output.shape)
