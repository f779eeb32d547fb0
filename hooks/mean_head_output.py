"""What each head puts out on average over reference prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import DeviceTooSmall, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.forward_facts import Part


@torch.no_grad()
def mean_head_output(
    model: PreTrainedModel, reference: Sequence[Sequence[int]], part: Part = "self"
) -> dict[int, Float[Tensor, "head value_channel"]]:
    """Each head's output before the output projection, averaged over all positions of all reference prompts.

    By layer, in float64 on the CPU, from the model without any intervention; prompts run one by one, unpadded. Raises
    `UsageError` for the decoder of an encoder-decoder, which does not read prompts.
    """
    total = _sum(part)
    with attached(model, total, alone=True):
        run(model, reference, part)
    return {layer: outputs / total.num_tokens[layer] for layer, outputs in total.outputs.items()}


def run(model: PreTrainedModel, prompts: Sequence[Sequence[int]], part: Part = "self") -> None:
    """Put each prompt through the model's layers, without a cache and without making logits.

    Raises `UsageError` for the decoder of an encoder-decoder, which does not read prompts, `DeviceTooSmall` where a
    prompt does not go through at once.
    """
    layers: Any = model.base_model
    if getattr(model.config, "is_encoder_decoder", False):
        if part != "encoder":
            raise UsageError(
                f"{name_of(model)}: its encoder reads prompts and its decoder does not, so there is nothing to average "
                f"part {part!r} over"
            )
        layers = model.get_encoder()
    without_cache = {} if part == "encoder" else {"use_cache": False}
    device = input_device(model)
    for tokens in filter(len, prompts):
        try:
            with allocation_errors():
                layers(input_ids=torch.tensor([list(tokens)], device=device), **without_cache)
        except torch.OutOfMemoryError as error:
            raise DeviceTooSmall(
                f"{name_of(model)}: {device} has no room for a reference prompt of {len(tokens)} tokens, which is read "
                f"at once: {error}"
            ) from error


class _sum(tap):
    def __init__(self, part: Part) -> None:
        self.part = part
        self.outputs: dict[int, Tensor] = {}
        self.num_tokens: dict[int, int] = {}

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        summed = output[0].sum(dim=0, dtype=torch.float64).cpu()
        self.outputs[here.layer] = self.outputs.get(here.layer, 0) + summed
        self.num_tokens[here.layer] = self.num_tokens.get(here.layer, 0) + output.shape[1]
        return output
