"""Tiny Mamba models of which the recurrence is computed again, token by token in float64, as a definition says."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from transformers import PreTrainedModel

# layer, decay and what is written [token head state channel], step size [token head channel] -> states, one a token
Definition = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def plain(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
    """The recurrence as nobody has changed it."""
    state, states = torch.zeros_like(written[0]), []
    for a, w in zip(decay, written, strict=True):
        state = a * state + w
        states.append(state)
    return torch.stack(states)


def windowed(decay: Tensor, written: Tensor, window: int) -> Tensor:
    """Each state anew from nothing but the last inputs."""
    states = []
    for t in range(len(written)):
        first = max(0, t - window + 1)
        states.append(plain(0, decay[first : t + 1], written[first : t + 1], decay)[-1])
    return torch.stack(states)


@torch.no_grad()
def stepwise_logits(
    model: PreTrainedModel, ids: list[int], definition: Definition, states: dict[int, Tensor] | None = None
) -> Tensor:
    """Logits [token vocabulary] of one whole prompt, every scan being `definition`; the states go into `states`."""
    exact = copy.deepcopy(model).double()
    mixers = [module for module in exact.modules() if hasattr(module, "A_log")]
    layers = [module.layer_idx for module in mixers]
    names = inspect.unwrap(type(mixers[0]).forward).__globals__
    called = 0

    def read(decay: Tensor, written: Tensor, step: Tensor, query: Tensor) -> Tensor:
        nonlocal called
        layer = layers[called]
        called += 1
        found = definition(layer, decay, written, step)
        if states is not None:
            states[layer] = found
        return torch.einsum("thn,thnp->thp", query, found)

    def mamba2_chunk_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, dt_bias: Tensor,
        dt_limit: tuple[float, float], **_: Any,
    ) -> Tensor:  # fmt: skip
        x, B, C = x[0].double(), B[0].double(), C[0].double()
        heads = x.shape[1]
        B, C = (each.repeat_interleave(heads // each.shape[1], 1) for each in (B, C))
        step = softplus(dt[0].double() + dt_bias.double()).clamp(*dt_limit)
        written = B[..., None] * (step[..., None] * x)[:, :, None]
        decay = (step * A.double()).exp()[..., None, None].expand_as(written)
        y = read(decay, written, step[..., None].expand_as(x), C)
        return (y + D.double()[:, None] * x)[None]

    def mamba_selective_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, z: Tensor, delta_bias: Tensor | None,
        **_: Any,
    ) -> Tensor:  # fmt: skip
        x, B, C = (each[0].double().T for each in (x, B, C))
        step = softplus(dt[0].double().T + (0 if delta_bias is None else delta_bias.double()))
        written = (B[..., None] * (step * x)[:, None])[:, None]
        decay = (step[:, None] * A.double().T).exp()[:, None]
        y = read(decay, written, step[:, None], C[:, None])[:, 0]
        return ((y + D.double() * x) * silu(z[0].double().T)).T[None]

    scans = {"mamba2_chunk_scan": mamba2_chunk_scan, "mamba_selective_scan": mamba_selective_scan}
    own = {name: names[name] for name in scans if name in names}
    names.update({name: scans[name] for name in own})
    try:
        logits = exact(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        names.update(own)
    assert called == len(layers)
    return logits
