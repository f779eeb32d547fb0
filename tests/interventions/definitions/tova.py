"""TOVA, one query after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.tova import tova

EXAMPLES = [tova(8), tova(5, protect_last=True), tova(20)]
IDENTITIES = [tova(65), tova(65, protect_last=True), tova(3, prompt="whole")]


def definition(asked: tova, model: Any, prompt: int | None = None) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = query.shape[1]
        budget = int(asked.budget) if asked.budget >= 1 else max(1, int(asked.budget * (prompt or num)))
        output = value.new_zeros(len(query), num, value.shape[-1])
        cache: list[int] = []
        for i in range(num):
            cache.append(i)
            given = torch.einsum("hd,hjd->hj", query[:, i], key[:, cache]).mul(scale).softmax(-1)
            output[:, i] = torch.einsum("hj,hjd->hd", given, value[:, cache])
            worth = dict(zip(cache, given.sum(0).tolist(), strict=True))
            while len(cache) > budget and (asked.prompt == "streamed" or i >= (prompt or num) - 1):
                cache.remove(min(cache[: -1 if asked.protect_last else None], key=lambda j: worth[j]))
        return output

    return attend
