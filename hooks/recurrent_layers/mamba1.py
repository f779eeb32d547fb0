"""Mamba: a decay for each channel and each component of its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from probe.hooks.recurrence.layer import RecurrentFamily, function_call, mixer_forward, scanned
from probe.hooks.recurrent_layers.mamba2 import step_size


class mamba1(RecurrentFamily):
    """Mixers that call Mamba's selective scan: Mamba's own, Falcon-Mamba's, Jamba's, Zamba's.

    Mamba has no heads: all its channels are one (in Zamba, whose channels are in heads, each of these is one). k = B,
    q = C, v = x after the convolution, g = Δ after the softplus and a = exp(Δ A), both different in every channel. The
    skip by D and the gate are not in y.

    The scan of several tokens takes no state to go on from, and where somebody adds what the state brings, that happens
    around it: so the state is the cache's, and the output what goes into the last projection.
    """

    functions = ("mamba_selective_scan", "mamba_selective_state_update")
    in_place = ("state",)
    inner = ("out_proj",)

    def before(self, module: nn.Module, given: Mapping[str, Any]) -> Tensor | None:
        """Return the state that it will go on from."""
        state = _cached(module, given)
        return None if state is None else state.clone()

    def why_unchangeable(self, module: nn.Module) -> str:
        """Zamba's cannot: its heads are scanned one by one."""
        return "its heads are scanned one by one" if getattr(module, "n_mamba_heads", 1) != 1 else ""

    def scanned_by(self, call: function_call) -> scanned:
        """Read the scan of a chunk, or the update by one token, as the function itself had it."""
        if call.name == "mamba_selective_state_update":
            output, states = call.output[..., None], (call.arguments["state"], call.changed["state"])
        else:
            output, after = call.output if isinstance(call.output, tuple) else (call.output, None)
            states = call.arguments.get("initial_state"), after
        before, after = (None if state is None else _in_heads(state) for state in states)
        return _scanned(call, output.transpose(1, 2)[:, :, None], before, after)

    def instead(self, call: function_call, output: Tensor, state: Tensor) -> Any:
        """See `RecurrentFamily.instead`."""
        output, state = output[:, :, 0].transpose(1, 2), state[:, 0].transpose(-1, -2)
        if call.name == "mamba_selective_state_update":
            call.changed["state"].copy_(state)
            return output[..., 0].to(call.output.dtype)
        if not isinstance(call.output, tuple):
            return output.to(call.output.dtype)
        return output.to(call.output[0].dtype), state.to(call.output[1].dtype)

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Read the scans of a chunk, or the updates by one token, of each head."""
        states = forward.before, _cached(module, forward.given)
        before, after = (None if state is None else _in_heads(state) for state in states)
        output = forward.inputs["out_proj"]
        output = output.reshape(*output.shape[:2], max(len(forward.calls), 1), -1)
        return [
            _scanned(
                call,
                output[:, :, head : head + 1],
                None if before is None else before[:, head : head + 1],
                None if after is None else after[:, head : head + 1],
            )
            for head, call in enumerate(forward.calls)
        ]


def _cached(module: Any, given: Mapping[str, Any]) -> Tensor | None:
    cache = given.get("cache_params")
    state: Tensor | None = None if cache is None else cache.get_recurrent_state(module.layer_idx)
    return state


def _in_heads(state: Tensor) -> Tensor:
    """Return batch × head × state × channel."""
    state = state.transpose(-1, -2)
    return state if state.ndim == 4 else state[:, None]


def _scanned(call: function_call, output: Tensor, before: Tensor | None, after: Tensor | None) -> scanned:
    given, one_token = call.arguments, call.name == "mamba_selective_state_update"
    # batch × channel or state × token
    query, key, value, step = (
        given[name][..., None] if one_token else given[name] for name in ("C", "B", "hidden_states", "dt")
    )
    gate = given["z"][..., None] if one_token and given["z"] is not None else given["z"]
    bias = given["dt_bias" if one_token else "delta_bias"]
    softplus = given["dt_softplus" if one_token else "delta_softplus"]
    step = step_size(step, None if bias is None else bias[:, None], softplus).transpose(1, 2)[:, :, None]
    return scanned(
        query=query.transpose(1, 2)[:, :, None],
        key=key.transpose(1, 2)[:, :, None],
        value=value.transpose(1, 2)[:, :, None],
        gate=step,
        log_decay=step[..., None, :],
        rate=given["A"].T[None],
        output=output,
        state_before=before,
        state_after=after,
        skip=None if given["D"] is None else given["D"][None],
        output_gate=None if gate is None else silu(gate).transpose(1, 2)[:, :, None],
    )
