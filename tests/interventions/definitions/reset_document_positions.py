"""Documents at one position, densely: where each token stands written out one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.reset_document_positions import reset_document_positions
from tests.interventions.dense_model import causal, chosen_logits, inverse_frequencies, turned, unturned

EXAMPLES = [
    reset_document_positions(documents=[(2, 9), (10, 25), (26, 31)]),
    reset_document_positions(apart=False, documents=[(0, 12), (12, 20), (40, 60)]),
    reset_document_positions(documents=[(3, 6), (7, 12)], heads=[(0, 1), (1, 0), (1, 2)]),
]
# One document alone stands where it stood.
IDENTITIES = [reset_document_positions(documents=[(4, 40)]), reset_document_positions(False, [(0, 65)])]


def places(documents: Any, num: int) -> tuple[list[int], list[int]]:
    """Position and document of each token; −1 for none."""
    first, end = documents[0][0], documents[-1][1]
    starts = [start for start, _ in documents]
    longest = max(stop - start for start, stop in zip(starts, [*starts[1:], end], strict=True))
    position, document = [], []
    for token in range(num):
        if token < first:
            position.append(token)
            document.append(-1)
        elif token >= end:
            position.append(first + longest + token - end)
            document.append(-1)
        else:
            mine = max(i for i, start in enumerate(starts) if start <= token)
            position.append(first + token - starts[mine])
            document.append(mine)
    return position, document


def definition(asked: reset_document_positions, model: Any) -> Any:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        position, document = places(asked.documents, query.shape[1])
        angle = torch.tensor(position, dtype=torch.float64)[:, None] * inverse_frequencies(model)
        logits = query @ key.transpose(1, 2) * scale
        moved = turned(unturned(model, query), angle) @ turned(unturned(model, key), angle).transpose(1, 2) * scale
        if asked.apart:
            of = torch.tensor(document)
            others = (of[:, None] >= 0) & (of >= 0) & (of[:, None] != of)
            moved = moved.masked_fill(others, -torch.inf)
        return causal(chosen_logits(asked, layer, moved, logits)).softmax(-1) @ value

    return attend
