"""Read errors of both memories of one bit, counted until the exact interval ends at 1e-5 or an error is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.intervals import clopper_pearson
from probe.workloads.flip_flop import SYMBOLS, flip_flop_symbols

FOLDER = Path(__file__).parents[1] / "casebooks" / "specimens" / "flip-flop"
PAIRS, ROWS = 128, 512
ENOUGH = 370_000
"""Reads without an error that put the exact interval's end below 1e-5: ln 0.025 / ln (1 - 1e-5) = 368,888."""

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    held = load_file(FOLDER / "lstm.safetensors")
    embedding = nn.Embedding(*held["embedding.weight"].shape)
    lstm, head = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 8)
    for name, module in (("embedding", embedding), ("lstm", lstm), ("head", head)):
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in held.items() if k.startswith(f"{name}.")})
    llama = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    return {"llama": lambda tokens: llama(tokens).logits, "lstm": lambda tokens: head(lstm(embedding(tokens))[0])}


@torch.inference_mode()
def counted(model: Any, ignored: float, reads: int, seed: int = 77) -> tuple[int, int]:
    """Return how many reads were wrong, and how many there were, over at least `reads` of them."""
    ids = torch.tensor(AutoTokenizer.from_pretrained(FOLDER).convert_tokens_to_ids(list(SYMBOLS)))
    generator, wrong, n = np.random.default_rng(seed), 0, 0
    while n < reads:
        symbols = torch.from_numpy(flip_flop_symbols(generator, ROWS, PAIRS, ignored))
        is_read, bit = symbols[:, 0::2] == SYMBOLS.index("r"), symbols[:, 1::2] - SYMBOLS.index("0")
        logits = model(ids[symbols])[:, 0::2]
        said = (logits[..., ids[4]] > logits[..., ids[3]]).long()
        wrong += int(((said != bit) & is_read).sum())
        n += int(is_read.sum())
    return wrong, n


@pytest.mark.parametrize("ignored", [0.8, 0.98, 0.1])
def test_the_lstm_reads_wrongly_less_often_than_one_in_100_000(models: dict[str, Any], ignored: float) -> None:
    wrong, n = counted(models["lstm"], ignored, ENOUGH)
    interval = clopper_pearson(wrong, n)
    assert interval is not None
    assert (wrong, interval.high < 1e-5) == (0, True), (wrong, n)


def test_the_llama_is_right_where_it_was_trained_and_wrong_in_the_tail(models: dict[str, Any]) -> None:
    trained = clopper_pearson(*counted(models["llama"], 0.8, ENOUGH))
    sparse = clopper_pearson(*counted(models["llama"], 0.98, 5_000))
    assert trained is not None
    assert sparse is not None
    print(trained, sparse)
    assert trained.high < 1e-3
    assert sparse.low > 0.05
