"""Found-in-the-middle calibration, densely: relevance of each row's own attention, dummies measured before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probe.hooks.found_in_the_middle import found_in_the_middle
from tests.interventions.dense_model import causal

DOCUMENTS = [(5, 9), (9, 12), (14, 30), (40, 60)]
DUMMIES = [0.02, 0.005, 0.01, 0.03]
GIVEN: dict[str, Any] = {"documents": DOCUMENTS, "dummy_attention": DUMMIES}

EXAMPLES = [
    found_in_the_middle(**GIVEN, pool="head", temperature=0.01),
    found_in_the_middle(**GIVEN, pool="layer"),
    found_in_the_middle(**GIVEN, pool="layer", form="divide", phase="both", layers=[0, 1]),
    found_in_the_middle(**GIVEN, pool="layer", temperature=0.02, original="head", phase="prefill", sink_tokens=7),
    found_in_the_middle(**GIVEN, pool="head", form="divide", original="none", phase="both", heads=[(0, 1), (1, 0)]),
    found_in_the_middle(documents=DOCUMENTS, form="uncalibrated", pool="layer", temperature=1e-3, layers=[0]),
]
IDENTITIES = [
    # Relevance that is hardly weighed is equal relevance.
    found_in_the_middle(**GIVEN, pool="head", temperature=1e9, original="none", phase="both", layers=[0, 1]),
    # a / dummy, where all dummies have the same.
    found_in_the_middle(
        documents=DOCUMENTS, dummy_attention=[0.01] * 4, pool="head", form="divide", phase="both", layers=[0, 1]
    ),
    # One document to be seen, nothing to share out.
    found_in_the_middle(documents=[(5, 9), (200, 300)], dummy_attention=[0.1, 0.2], pool="layer", phase="both"),
]


def definition(asked: found_in_the_middle, model: Any) -> Any:
    number = model.config.num_hidden_layers
    layers = {layer for layer, _ in asked.heads} if asked.heads else asked.layers
    layers = range(number // 2, number) if layers is None else layers
    temperature = asked.temperature or (1.0 if asked.form == "divide" else 5e-5)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        given = causal(query @ key.transpose(1, 2) * scale).softmax(-1)
        if layer not in layers:
            return given @ value
        num, changed = given.shape[1], given.clone()
        for row in range(num):
            last = row == num - 1
            if (asked.phase == "decode" and not last) or (asked.phase == "prefill" and last):
                continue
            ranges = [range(max(a, asked.sink_tokens), min(b, row + 1)) for a, b in asked.documents or ()]
            there = [k for k, each in enumerate(ranges) if len(each)]
            if not there:
                continue
            sums = torch.stack([given[:, row, list(ranges[k])].sum(-1) for k in there], -1)
            own = sums / torch.tensor([len(ranges[k]) for k in there])
            pooled = own if asked.pool == "head" else own.mean(0).expand_as(own)
            if asked.form == "uncalibrated":
                relevance = pooled
            else:
                dummy = torch.tensor([asked.dummy_attention[k] for k in there], dtype=torch.float64)
                relevance = pooled - dummy if asked.form == "subtract" else (pooled / dummy).log()
            alpha = (relevance / temperature).softmax(-1)
            factor = alpha / {"pooled": pooled, "head": own, "none": torch.ones_like(own)}[asked.original]
            factor = factor * (sums.sum(-1) / (sums * factor).sum(-1))[:, None]
            for at, k in enumerate(there):
                changed[:, row, list(ranges[k])] *= factor[:, at, None]
        if asked.heads is not None:
            for head in range(len(given)):
                if (layer, head) not in asked.heads:
                    changed[head] = given[head]
        return changed @ value

    return attend
