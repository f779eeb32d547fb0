"""StreamingLLM, one query after the other, its keys turned to where they lie in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.keep_sinks_and_recent import keep_sinks_and_recent
from tests.interventions.dense_model import inverse_frequencies, turned, unturned

EXAMPLES = [
    keep_sinks_and_recent(8),
    keep_sinks_and_recent(5, num_first=0),
    keep_sinks_and_recent(7, num_first=7),
    keep_sinks_and_recent(11, num_first=2, positions="text"),
    keep_sinks_and_recent(9, num_first=1, positions="text"),
    keep_sinks_and_recent(8, num_first=3, heads=[(0, 1), (1, 2)]),
]
IDENTITIES = [
    keep_sinks_and_recent(65, positions="text"), keep_sinks_and_recent(64), keep_sinks_and_recent(64, num_first=0),
]  # fmt: skip


def definition(asked: keep_sinks_and_recent, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        num = query.shape[1]
        budget = int(asked.budget) if asked.budget >= 1 else max(1, int(asked.budget * num))
        output = value.new_zeros(len(query), num, value.shape[-1])
        in_cache = asked.positions == "cache"
        plain_query, plain_key = (unturned(model, each) if in_cache else each for each in (query, key))
        for head in range(len(query)):
            acts = asked.heads is None or (layer, head) in asked.heads
            for i in range(num):
                cache = list(range(i + 1))
                while acts and len(cache) > budget + 1:
                    del cache[asked.num_first]
                asks, keys = query[head, i], key[head, cache]
                if acts and in_cache:
                    angle = torch.arange(len(cache), dtype=torch.float64)[:, None] * inverse_frequencies(model)
                    keys = turned(plain_key[None, head, cache], angle)[0]
                    asks = turned(plain_query[None, head, i : i + 1], angle[-1:])[0, 0]
                output[head, i] = (keys @ asks * scale).softmax(-1) @ value[head, cache]
        return output

    return attend
