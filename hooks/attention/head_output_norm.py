"""How much each head adds to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.output_projection import output_projection, projection_weight
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.mean_head_output import run


@torch.no_grad()
def head_output_norm(
    model: Any, reference: Sequence[Sequence[int]], *, projected: bool = True
) -> Float[np.ndarray, "layer head"]:
    """Mean L2 norm, over all positions of the reference prompts, of what each head adds to the residual stream.

    A head's part is its output through its columns of the output projection, without the bias; with
    `projected=False` its output before the projection. NaN stands where a layer has no such head. Norms after the
    projection leave out any norm that the model applies to the layer's output. Raises `NotReproducible` where the
    projection cannot be found, `UsageError` without prompts.
    """
    hf: PreTrainedModel = transformers_model_of(model)
    if not any(reference):
        raise UsageError("head_output_norm needs at least one reference prompt")
    measured = _norms(name_of(hf), projected)
    with attached(hf, measured, alone=True):
        run(hf, reference)
    num_layers = max(int(hf.config.get_text_config().num_hidden_layers), max(measured.sums) + 1)
    norms = np.full((num_layers, max(len(each) for each in measured.sums.values())), np.nan)
    for layer, total in measured.sums.items():
        norms[layer, : len(total)] = (total / measured.num_tokens[layer]).numpy()
    return norms


class _norms(tap):
    def __init__(self, model_name: str, projected: bool) -> None:
        self.model_name, self.projected = model_name, projected
        self.sums: dict[int, Tensor] = {}
        self.num_tokens: dict[int, int] = {}

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        heads = output[0].transpose(0, 1).float()
        if self.projected:
            weight = self._projection(here, output).to(heads).view(here.num_heads, here.value_dim, -1)
            # ‖Wz‖² = z·(WWᵀ)z spares a residual-wide vector for each head and token.
            squared = (heads @ (weight @ weight.transpose(1, 2)) * heads).sum(dim=-1)
            norm = squared.clamp_min(0).sqrt()
        else:
            norm = heads.norm(dim=-1)
        self.sums[here.layer] = self.sums.get(here.layer, 0) + norm.sum(dim=1, dtype=torch.float64).cpu()
        self.num_tokens[here.layer] = self.num_tokens.get(here.layer, 0) + output.shape[1]
        return output

    def _projection(self, here: site, like: Tensor) -> Float[Tensor, "head_channel residual_channel"]:
        width = here.num_heads * here.value_dim
        found = output_projection(here.module, width)
        if found is not None:
            return projection_weight(found, width, like)
        raise NotReproducible(
            f"{self.model_name}, layer {here.layer}: the output projection of {type(here.module).__name__} was not "
            "found; norms before it are to be had with projected=False"
        )
