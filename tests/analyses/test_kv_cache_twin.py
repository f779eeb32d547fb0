"""What `kv_cache` says that a policy would keep is what the intervention of that policy keeps, on the same prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.analyses.measures.cache_policies import kept_keys, policy_scores
from probe.hooks.heavy_hitters import heavy_hitters
from probe.hooks.keep_sinks_and_recent import keep_sinks_and_recent
from probe.hooks.key_norm import key_norm
from probe.hooks.snapkv import snapkv
from probe.hooks.tova import tova
from probe.kernels.call import Call
from probe.kernels.dense import Dense
from tests.interventions.dense_model import llama, qwen3

WINDOW, NUM = 8, 61
BUDGETS = (20, 31, 45)
# No token stands twice: equal keys would be ties.
IDS = torch.randperm(NUM, generator=torch.Generator().manual_seed(5)).tolist()

# What each policy is as an intervention that cuts once, at the prompt's end, as the analysis does.
POLICIES = {
    "SnapKV": lambda budget: snapkv(budget, window=WINDOW, last_token="full"),
    "H2O": lambda budget: heavy_hitters(budget, prompt="whole"),
    "TOVA": lambda budget: tova(budget, prompt="whole"),
    "key norm": lambda budget: key_norm(budget, last_token="full"),
    "StreamingLLM": lambda budget: keep_sinks_and_recent(budget, positions="text"),
}


def said(model: Any) -> dict[str, np.ndarray]:
    """What the analysis' statistics say of the prompt alone, on the full cache: `[layer kv_head key]` each."""
    asked = [{"window_mass": {"window": WINDOW}}, {"window_mass": {"window": 1}}, "received_mass", "key_norm"]
    trace = probe.trace(model, IDS, statistics=asked, max_new_tokens=1, check=False)
    kv_heads = trace["key_norm"].sizes["kv_head"]

    def by_group(name: str) -> np.ndarray:
        values = trace[name].transpose("layer", "head", "key").to_numpy().astype(np.float64)[..., :NUM]
        return values.reshape(len(values), kv_heads, -1, NUM).mean(2)

    norm = trace["key_norm"].transpose("layer", "kv_head", "key").to_numpy()[..., :NUM].astype(np.float64)
    names = (f"window_mass_window_{WINDOW}", "received_mass", "window_mass_window_1")
    return dict(zip(("votes", "received", "last", "norm"), (*map(by_group, names), norm), strict=True))


def kept_by(model: Any, intervention: Any) -> np.ndarray:
    """Which of the prompt's keys the first query after it finds, `[layer kv_head key]`."""
    calls: dict[int, Call] = {}
    with intervention(model):
        pieces = probe.load(model)
        state = pieces.prefill(IDS[:-1])
        pieces.step(state, IDS[-1:])
        with pieces.calls(lambda sample, call: calls.__setitem__(call.layer, call)):
            pieces.step(state, [3])
    found = []
    for _, call in sorted(calls.items()):
        seen = torch.isfinite(Dense(call).logit[:, 0, :NUM]).view(call.num_kv_heads, -1, NUM)
        assert (seen == seen[:, :1]).all()
        found.append(seen[:, 0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("make", [llama, qwen3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_twin_keeps_what_the_intervention_keeps(make: Any, policy: str) -> None:
    model = make()
    scores = said(model)
    for budget in BUDGETS:
        score = policy_scores(policy, **scores, window=WINDOW, generator=np.random.default_rng(0))
        assert (kept_keys(policy, score, budget, WINDOW) == kept_by(model, POLICIES[policy](budget))).all()
