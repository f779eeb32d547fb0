"""The residual stream of a model: the output of each of its decoder layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import DeviceTooSmall, NotReproducible
from probe.hooks.attention.interface import name_of, text_decoder
from probe.hooks.attention.switch import current_forward
from probe.hooks.loading.allocation import allocation_errors

OnResidual = Callable[[int, int, Float[Tensor, "token channel"]], None]


@contextmanager
def watched_residuals(
    model: PreTrainedModel, attention: Sequence[nn.Module], on_residual: OnResidual
) -> Iterator[None]:
    """Within the block `on_residual(layer, sample, hidden)` gets each decoder layer's output, padding sliced off.

    What the last layer adds to is the final norm's input. Raises `NotReproducible` for a model without a list of
    layers that the attention modules stand in.
    """
    layers, reader = decoder_layers(model, attention), object()

    def hand_out(index: int, _module: nn.Module, _args: Any, output: Any) -> None:
        facts = current_forward(model)
        if facts is None:
            return
        hidden = output[0] if isinstance(output, tuple | list) else output
        # Hyper-connections carry several streams side by side: batch × token × stream × channel.
        shape = facts.num_samples, facts.num_queries
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[:2] != shape:
            raise NotReproducible(f"{name_of(model)}, layer {index}: its output is not batch × token × channel")
        for sample in range(facts.num_samples):
            first, last = facts.queries_of(sample)
            if facts.handed is not None:
                start, stop = facts.num_past + first, facts.num_past + last
                first = facts.handed.first_new(reader, index, start, stop) - facts.num_past
            if first == last:
                continue
            try:
                with allocation_errors():
                    on_residual(index, sample, hidden[sample, first:last].detach())
            except torch.OutOfMemoryError as error:
                raise DeviceTooSmall(
                    f"{name_of(model)}, layer {index}: what reads its output ran out of device memory at "
                    f"{last - first} tokens; smaller chunks or fewer statistics may do: {error}"
                ) from error
            if facts.handed is not None:
                facts.handed.done(reader, index, facts.num_past + last)

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(partial(hand_out, index)).remove)
        yield


def decoder_layers(model: PreTrainedModel, attention: Sequence[nn.Module]) -> list[nn.Module]:
    """The list of layers that hold all of the attention modules; raises `NotReproducible` where there is none."""
    wanted = {id(module) for module in attention}
    for module in text_decoder(model).modules():
        if isinstance(module, nn.ModuleList) and wanted <= {id(each) for child in module for each in child.modules()}:
            return list(module)
    raise NotReproducible(f"{name_of(model)}: no list of layers holds its attention, so no residual stream can be read")
