"""Probabilities without the first tokens', renormalised, densely."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probe.hooks.remove_sink import remove_sink
from tests.interventions.dense_model import causal

EXAMPLES = [remove_sink(5), remove_sink(20, heads=[(0, 0), (1, 2)])]
IDENTITIES = [remove_sink(65)]


def definition(asked: remove_sink, model: Any) -> Any:
    n = asked.num_tokens

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        probability = causal(query @ key.transpose(1, 2) * scale).softmax(-1)
        without = probability.clone()
        without[:, n:, :n] = 0
        without = without / without.sum(-1, keepdim=True)
        for head in range(len(probability)):
            if asked.heads is None or (layer, head) in asked.heads:
                probability[head] = without[head]
        return probability @ value

    return attend
