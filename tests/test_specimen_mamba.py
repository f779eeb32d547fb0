"""The specimen `mamba` does what its card says: it recalls within 64 tokens, and loses what is recent beyond."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "casebooks" / "specimens" / "mamba"
TEXTS = 40


def text(rng: random.Random, words: list[str], length: int, age: int) -> tuple[list[str], str]:
    """Filler, four pairs `age` words before the end, filler, and a key: written without the specimen's script."""
    drawn = rng.sample(words, len(words))
    keys, values, filler = drawn[:4], drawn[128:132], drawn[4:]
    asked = rng.randrange(4)
    body = [rng.choice(filler) for _ in range(length - age)]
    body += [word for pair in zip(keys, values, strict=True) for word in pair]
    body += [rng.choice(filler) for _ in range(length - 2 - len(body))]
    return [*body, keys[asked]], values[asked]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@torch.inference_mode()
def recall(model: Any, tokenizer: Any, length: int, age: int, last: int | None = None) -> float:
    """Share of last words that are right; of the text's last `last` tokens alone where that is given."""
    rng = random.Random(f"{length} {age}")
    words = sorted(set(tokenizer.get_vocab()) - {"<pad>", "<unk>"})
    drawn = [text(rng, words, length, age) for _ in range(TEXTS)]
    tokens = torch.tensor([tokenizer(" ".join(body))["input_ids"] for body, _ in drawn])
    assert tokens.shape == (TEXTS, length - 1)
    due = torch.tensor(tokenizer.convert_tokens_to_ids([value for _, value in drawn]))
    said = model(tokens if last is None else tokens[:, -last:], logits_to_keep=1).logits[:, -1].argmax(-1)
    return float((said == due).float().mean())


def test_it_recalls_within_its_length_and_loses_what_is_recent_beyond(model: Any, tokenizer: Any) -> None:
    card = json.loads((FOLDER / "specimen.json").read_text())["figures"]
    for length in (64, 512):
        # Four standard errors of a share of 40.
        expected = card[f"recent_recall_at_{length}"]
        assert recall(model, tokenizer, length, 32) == pytest.approx(expected, abs=0.04 + 4 * (0.25 / TEXTS) ** 0.5)
    assert recall(model, tokenizer, 64, 32) > 0.85
    assert recall(model, tokenizer, 512, 32) < 0.5
    assert recall(model, tokenizer, 512, 32, last=31) > 0.9


@torch.inference_mode()
def test_its_first_layers_state_grows_without_end(model: Any, tokenizer: Any) -> None:
    rng = random.Random(0)
    words = sorted(set(tokenizer.get_vocab()) - {"<pad>", "<unk>"})
    tokens = torch.tensor([tokenizer(" ".join(text(rng, words, 513, 256)[0]))["input_ids"] for _ in range(8)])
    variance = {}
    for length in (64, 128, 512):
        cache = model(tokens[:, :length], use_cache=True).cache_params
        states = [cache.get_recurrent_state(layer, state_idx=0) for layer in (0, 1)]
        variance[length] = torch.stack([state.flatten(2).var(-1).mean(0) for state in states])
    assert (variance[128][0] > 2 * variance[64][0]).all()
    assert (variance[512][0] > 20 * variance[64][0]).all()
    assert (variance[512][1, 2:] < 4 * variance[64][1, 2:]).all()


def test_it_says_what_it_is() -> None:
    card = json.loads((FOLDER / "specimen.json").read_text())
    assert card["trained_length"] == json.loads((FOLDER / "config.json").read_text())["max_position_embeddings"] == 64
    assert card["engineered"] is False
    for figure, (low, high) in card["bounds"].items():
        assert low <= card["figures"][figure] <= high
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10e6
