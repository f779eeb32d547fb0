"""The specimen `prose` does what its card says: it copies, and it uses what stands far back in text it never saw."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.analyses.context_use import context_use
from probe.capture import load, trace
from probe.workloads.plain_text import ENGLISH, plain_text

FOLDER = Path(__file__).parents[1] / "casebooks" / "specimens" / "prose"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@torch.inference_mode()
def losses(model: Any, rows: torch.Tensor) -> torch.Tensor:
    logits = model(rows).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none").mean(0)


def test_a_random_string_is_copied_the_second_time(model, tokenizer):
    string = torch.randint(2, len(tokenizer), (8, 100), generator=torch.Generator().manual_seed(7))
    each = losses(model, torch.cat([torch.zeros(8, 1, dtype=torch.long), string, string], 1))
    assert each[:100].mean() > 6
    assert each[101:].mean() < 1


def test_some_heads_copy_as_the_paper_defines_it_and_none_is_a_sink(model, tokenizer):
    string = torch.randint(2, len(tokenizer), (1, 100), generator=torch.Generator().manual_seed(8))
    rows = torch.cat([torch.zeros(1, 1, dtype=torch.long), string, string], 1)
    model.set_attn_implementation("eager")
    layers = model(rows, output_attentions=True).attentions
    hits = torch.stack([layer[0, :, 100:200].argmax(-1) == torch.arange(1, 101) for layer in layers]).float().mean(-1)
    assert (hits > 0.5).sum() >= 4
    assert hits[:2].max() == 0
    texts = [tokenizer(ENGLISH.read_text()[at : at + 1000])["input_ids"][:64] for at in range(0, 64_000, 4_000)]
    attention = torch.stack(model(torch.tensor(texts), output_attentions=True).attentions)
    assert 0.1 < attention[..., 0].mean((1, 3)).max() < 0.3


def test_the_text_that_comes_with_the_toolkit_was_held_out():
    trained = lzma.decompress((FOLDER / "king-james-bible.txt.xz").read_bytes()).decode().split("\n\n")
    places = {part.strip(): at for at, part in enumerate(trained)}
    # One in twenty paragraphs is held out, from the seventh on.
    assert {places[part.strip()] % 20 for part in ENGLISH.read_text().split("\n\n")} == {7}


def test_what_is_far_back_is_used_and_shuffled_it_is_not():
    prose = load("prose")
    fields = {"text": "english", "lengths": (128, 448), "targets": 64, "near": 127, "samples": 16}
    samples = [s for how in ("kept", "shuffled") for s in plain_text(**fields, distant=how).build(prose.tokenizer)]
    finding = context_use([trace(prose, sample, statistics=["loss"]) for sample in samples])
    assert finding.measured.value > 0.02
    assert finding.control.value < finding.measured.value


def test_a_trained_model_is_not_said_to_use_context_in_a_text_that_has_none():
    needle = load("needle")
    fields = {"text": "templates", "lengths": (64, 200), "targets": 32, "near": 64, "samples": 12}
    samples = [s for how in ("kept", "shuffled") for s in plain_text(**fields, distant=how).build(needle.tokenizer)]
    finding = context_use([trace(needle, sample, statistics=["loss"]) for sample in samples])
    assert finding.verdict != "supported", finding.claim


def test_the_card_states_what_was_measured():
    said = json.loads((FOLDER / "specimen.json").read_text())
    assert set(said["bounds"]) <= set(said["figures"])
    for name, (low, high) in said["bounds"].items():
        assert low <= said["figures"][name] <= high, name
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 10_000_000
