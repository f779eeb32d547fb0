"""Mamba's selective scan started from the cached state, where transformers starts every scan at zero."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of, text_decoder
from probe.hooks.recurrence.scan_functions import corrected, functions_watched
from probe.hooks.sequence.continuation_repair import continuation_repair

_SCAN = "mamba_selective_scan"
_BLOCK_TOKENS = 64


class scan_from_state(continuation_repair):
    """Adds to a scan over several tokens what the state before them contributes (Mamba, Falcon Mamba, Jamba, Zamba).

    The scan is linear in its state, so the model's own scan from zero stays as it is, and the rest is exact: with
    S_t the sum of the step sizes up to t, the state h before the chunk adds C_t · exp(A S_t) h to output t (Gu and Dao
    2023, eq. 2a with a zero-order hold), times the gate, and exp(A S_T) h to the last state.
    """

    words: ClassVar[str] = "the cached state added to its selective scan, which transformers starts at zero"
    always: ClassVar[bool] = True

    def applies(self, model: PreTrainedModel) -> bool:
        """Whether any of its mixers scans by a function that takes no state to start from."""
        return any(True for _ in _mixers(model))

    @contextmanager
    def around(self, model: PreTrainedModel, num_past: int, num_tokens: int) -> Iterator[dict[str, Any]]:
        """Hand each mixer's cached state to its scan."""
        if num_tokens == 1 or num_past == 0:
            yield {}
            return
        waiting: list[Tensor] = []
        with ExitStack() as stack:
            for module in _mixers(model):
                stack.enter_context(functions_watched(module, (_SCAN,)))
                begins = module.register_forward_pre_hook(functools.partial(_begins, waiting), with_kwargs=True)
                stack.callback(begins.remove)
                ends = functools.partial(_ends, waiting, name_of(model))
                stack.callback(module.register_forward_hook(ends).remove)
            stack.enter_context(corrected(functools.partial(_from_state, waiting)))
            yield {}


def carried(
    state: Float[Tensor, "batch channel state"], dt: Float[Tensor, "batch channel token"],
    A: Float[Tensor, "channel state"], C: Float[Tensor, "batch state token"],
) -> tuple[Float[Tensor, "batch channel token"], Float[Tensor, "batch channel state"]]:  # fmt: skip
    """What a state adds to the outputs and to the last state of a scan with steps `dt` (after its softplus)."""
    passed = dt.float().cumsum(-1)
    added = []
    for start in range(0, dt.shape[-1], _BLOCK_TOKENS):
        block = slice(start, start + _BLOCK_TOKENS)
        left = state.float()[..., None] * torch.exp(A.float()[..., None] * passed[:, :, None, block])
        added.append((left * C.float()[:, None, :, block]).sum(2))
    return torch.cat(added, -1), state.float() * torch.exp(A.float() * passed[..., -1:])


def _mixers(model: PreTrainedModel) -> Iterator[nn.Module]:
    for module in text_decoder(model).modules():
        scan = getattr(inspect.unwrap(type(module).forward), "__globals__", {}).get(_SCAN)
        if scan is None or not hasattr(module, "layer_idx") or not hasattr(module, "A_log"):
            continue
        # A later transformers may hand the state over by itself.
        if not any("initial" in name for name in inspect.signature(scan).parameters):
            yield module


def _begins(waiting: list[Tensor], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
    state = given["cache_params"].layers[module.layer_idx].recurrent_states[0]
    # Zamba scans head by head. The cache's own tensor is overwritten after the scans, and what was handed out then is
    # still asked for.
    waiting[:] = state.clone().unbind(1) if state.ndim == 4 else [state.clone()]


def _ends(waiting: list[Tensor], model_name: str, module: nn.Module, _args: Any, _output: Any) -> None:
    if waiting:
        raise NotReproducible(f"{model_name}: {type(module).__name__} did not scan as expected, so its state was lost")


def _from_state(waiting: list[Tensor], name: str, given: dict[str, Any], output: Any) -> tuple[dict[str, Any], Any]:
    if name != _SCAN:
        return given, output
    state, steps, bias = waiting.pop(0), given["dt"], given["delta_bias"]
    steps = steps if bias is None else steps + bias.to(steps.dtype)[..., None]
    steps = nn.functional.softplus(steps) if given["delta_softplus"] else steps
    added, last = carried(state, steps, given["A"], given["C"])
    if given["z"] is not None:
        added = added * nn.functional.silu(given["z"].float())
    given = {**given, "initial_state": state}
    if not given["return_last_state"]:
        return given, (output + added).to(output.dtype)
    return given, ((output[0] + added).to(output[0].dtype), (output[1] + last).to(output[1].dtype))
