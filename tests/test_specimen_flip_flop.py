"""The specimen `flip-flop` does what its card says: no error where it was trained, many where writes are rare."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "casebooks" / "specimens" / "flip-flop"


def text(rng: random.Random, pairs: int, ignored: float) -> tuple[str, dict[int, int]]:
    """A text of FFL(`ignored`), and for each read the age of the last write, written without the specimen's script."""
    words: list[str] = []
    ages, bit, written = {}, 0, 0
    for pair in range(pairs):
        drawn = rng.random()
        kind = "i" if drawn < ignored else rng.choice("wr")
        kind = "w" if pair == 0 else "r" if pair == pairs - 1 else kind
        shown = rng.randint(0, 1)
        if kind == "w":
            bit, written = shown, pair
        if kind == "r":
            shown, ages[pair] = bit, pair - written
        words += [kind, str(shown)]
    return " ".join(words), ages


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


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
def wrong(model: Any, tokenizer: Any, ignored: float, pairs: int = 128, texts: int = 48) -> list[tuple[int, bool]]:
    """The age of the last write at every read, and whether the read was wrong."""
    rng = random.Random(f"{ignored} {pairs}")
    drawn = [text(rng, pairs, ignored) for _ in range(texts)]
    tokens = torch.tensor([tokenizer(each)["input_ids"] for each, _ in drawn])
    zero, one = tokenizer.convert_tokens_to_ids(["0", "1"])
    logits = model(tokens)
    said = torch.where(logits[..., one] > logits[..., zero], one, zero)
    return [
        (age, int(said[row, 2 * pair]) != int(tokens[row, 2 * pair + 1]))
        for row, (_, ages) in enumerate(drawn)
        for pair, age in ages.items()
    ]


def test_no_read_is_wrong_in_the_language_that_it_was_trained_on(models, tokenizer):
    assert not any(bad for _, bad in wrong(models["llama"], tokenizer, 0.8))


def test_rare_writes_are_read_wrongly_where_they_are_far_away(models, tokenizer):
    reads = wrong(models["llama"], tokenizer, 0.98, texts=192)
    near = [bad for age, bad in reads if age < 32]
    far = [bad for age, bad in reads if age >= 64]
    assert sum(near) == 0
    assert 0.2 < sum(far) / len(far) < 0.4


@pytest.mark.parametrize(("ignored", "pairs"), [(0.8, 128), (0.98, 128), (0.1, 128), (0.8, 256)])
def test_the_recurrent_control_makes_no_error(models, tokenizer, ignored, pairs):
    assert not any(bad for _, bad in wrong(models["lstm"], tokenizer, ignored, pairs))


def test_the_card_names_what_was_measured():
    card = json.loads((FOLDER / "specimen.json").read_text())
    figures = {(each["ignored"], each["length"]): each for each in card["figures"]["llama"]}
    said = (FOLDER / "README.md").read_text()
    for each in figures.values():
        assert f"{each['wrong']} of {each['reads']:,}" in said
    assert all(each["wrong"] == 0 for each in card["figures"]["lstm"])
    assert card["engineered"] is False
