"""Recurrent Gemma's convolution with the inputs before the chunk, where transformers starts it anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.sequence.continuation_repair import continuation_repair

_BLOCK = "RecurrentGemmaRecurrentBlock"


class convolution_from_state(continuation_repair):
    """Puts the last inputs of the chunk before in front of a convolution's, and takes their outputs off again."""

    words: ClassVar[str] = "the inputs before the chunk put in front of its convolution's"
    always: ClassVar[bool] = True

    def applies(self, model: PreTrainedModel) -> bool:
        """Whether it has blocks of Recurrent Gemma."""
        return any(type(module).__name__ == _BLOCK for module in model.modules())

    @contextmanager
    def around(self, model: PreTrainedModel, num_past: int, num_tokens: int) -> Iterator[dict[str, Any]]:
        """Give every convolution what it kept."""
        with ExitStack() as stack:
            # A single token is put through by another way, which has it right.
            if num_tokens > 1 and num_past > 0:
                for module in model.modules():
                    if type(module).__name__ == _BLOCK:
                        one = _convolved(module)
                        for hook in (
                            module.register_forward_pre_hook(one.begins),
                            module.conv_1d.register_forward_pre_hook(one.lengthen),
                            module.conv_1d.register_forward_hook(one.shorten),
                            module.register_forward_hook(one.ends),
                        ):
                            stack.callback(hook.remove)
            yield {}


class _convolved:
    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block
        self.before = self.whole = torch.empty(0)

    def begins(self, *_: Any) -> None:
        self.before = self.block.conv1d_state

    def lengthen(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.whole = torch.cat([self.before.to(args[0]), args[0]], -1)
        return (self.whole,)

    def shorten(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output[..., self.before.shape[-1] :]

    def ends(self, *_: Any) -> None:
        self.block.conv1d_state = self.whole[..., self.whole.shape[-1] - self.before.shape[-1] :]
