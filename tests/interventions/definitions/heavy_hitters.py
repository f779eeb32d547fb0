"""H2O, one query after the other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probe.hooks.heavy_hitters import heavy_hitters

EXAMPLES = [heavy_hitters(8), heavy_hitters(13, recent=0.2), heavy_hitters(15, recent=0), heavy_hitters(6, recent=1)]
IDENTITIES = [heavy_hitters(65), heavy_hitters(80, prompt="whole"), heavy_hitters(3, prompt="whole")]


def definition(asked: heavy_hitters, model: Any, prompt: int | None = None) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = query.shape[1]
        budget = int(asked.budget) if asked.budget >= 1 else max(1, int(asked.budget * (prompt or num)))
        group = len(query) // (getattr(model.config, "num_key_value_heads", None) or len(query))
        output = value.new_zeros(len(query), num, value.shape[-1])
        for first in range(0, len(query), group):
            heads = range(first, first + group)
            cache: list[int] = []
            received = dict.fromkeys(range(num), 0.0)
            for i in range(num):
                cache.append(i)
                for head in heads:
                    given = (key[head, cache] @ query[head, i] * scale).softmax(-1)
                    output[head, i] = given @ value[head, cache]
                    for j, share in zip(cache, given.tolist(), strict=True):
                        received[j] += share
                while len(cache) > budget and (asked.prompt == "streamed" or i >= (prompt or num) - 1):
                    old = cache[: len(cache) - int(asked.recent * budget)]
                    cache.remove(min(old, key=lambda j: received[j]))
        return output

    return attend
