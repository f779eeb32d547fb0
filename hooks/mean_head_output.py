"""What each head puts out on average over reference prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_switch import attached
from probe.hooks.attention_tap import site, tap
from probe.hooks.placement import input_device


@torch.no_grad()
def mean_head_output(
    model: PreTrainedModel, reference: Sequence[Sequence[int]]
) -> dict[int, Float[Tensor, "head value_channel"]]:
    """Each head's output before the output projection, averaged over all positions of all reference prompts.

    By layer, in float64 on the CPU, from the model without any intervention; prompts run one by one, unpadded.
    """
    total = _sum()
    with attached(model, total, alone=True):
        run(model, reference)
    return {layer: outputs / total.num_tokens[layer] for layer, outputs in total.outputs.items()}


def run(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    """Put each prompt through the model's layers, without a cache and without making logits."""
    for tokens in prompts:
        if len(tokens):
            model.base_model(input_ids=torch.tensor([list(tokens)], device=input_device(model)), use_cache=False)


class _sum(tap):
    def __init__(self) -> None:
        self.outputs: dict[int, Tensor] = {}
        self.num_tokens: dict[int, int] = {}

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        summed = output[0].sum(dim=0, dtype=torch.float64).cpu()
        self.outputs[here.layer] = self.outputs.get(here.layer, 0) + summed
        self.num_tokens[here.layer] = self.num_tokens.get(here.layer, 0) + output.shape[1]
        return output
