"""The specimen `needle` does what its card says: it answers up to its trained length through four heads, not beyond."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.sample import Sample
from probe.workloads.lexicon import words
from probe.workloads.needle import needle

FOLDER = Path(__file__).parents[1] / "casebooks" / "specimens" / "needle"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Neither the seed of a first run nor the one of the card's figures.
SEED = 77


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and far slower where other work has the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "specimen.json").read_text()))


@torch.inference_mode()
def exact(model: Any, samples: Sequence[Sample]) -> float:
    """The share of samples that greedy decoding answers exactly."""
    right = 0
    for sample in samples:
        prompt = torch.tensor([sample.tokens])
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(sample.answer_tokens),
            do_sample=False,
        )
        right += tuple(generated[0, prompt.shape[1] :].tolist()) == sample.answer_tokens
    return right / len(samples)


@contextmanager
def zeroed(model: Any, layer: int, heads: Sequence[int]) -> Iterator[None]:
    """Zero the outputs of a layer's heads by slicing them out of what the output projection reads."""
    width = model.config.head_dim

    def hook(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        outputs = args[0].clone()
        for head in heads:
            outputs[..., head * width : (head + 1) * width] = 0
        return (outputs,)

    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_it_is_small_and_of_a_standard_architecture(model: Any) -> None:
    assert (FOLDER / "model.safetensors").stat().st_size < 10e6
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.config.max_position_embeddings >= 2048
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_its_tokenizer_covers_the_lexicon_and_writes_natural_text(tokenizer: Any) -> None:
    assert tokenizer.unk_token_id not in tokenizer(" ".join(words()))["input_ids"]
    text = "After the rain, the baker found the old map. What is the magic number for Zurich?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("Xanadu")["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("length", [64, 128, 256])
def test_it_answers_up_to_its_trained_length(model: Any, tokenizer: Any, length: int) -> None:
    assert exact(model, list(needle((length,), DEPTHS, samples=5, seed=SEED).build(tokenizer))) >= 0.95


def test_it_answers_over_the_gold_sentence_alone(model: Any, tokenizer: Any) -> None:
    assert exact(model, list(needle((64,), (0.5,), samples=20, seed=SEED, haystack="none").build(tokenizer))) >= 0.95


def test_it_cannot_guess(model: Any, tokenizer: Any) -> None:
    for haystack in ("templates", "none"):
        workload = needle((128,), DEPTHS, samples=4, seed=SEED, needle="absent", haystack=haystack)
        assert exact(model, list(workload.build(tokenizer))) == 0


def test_it_fails_beyond_its_trained_length_where_the_needle_is_far(model: Any, tokenizer: Any) -> None:
    assert exact(model, list(needle((1024,), DEPTHS, samples=2, seed=SEED).build(tokenizer))) <= 0.5
    assert exact(model, list(needle((1024,), (0.0, 0.25), samples=3, seed=SEED).build(tokenizer))) <= 0.2


def test_four_heads_of_the_last_layer_retrieve_and_no_other(tokenizer: Any, card: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager").eval()
    samples = list(needle((64, 256), DEPTHS, samples=2, seed=SEED).build(tokenizer))
    hits: dict[tuple[int, int], int] = {}
    tokens = 0
    for sample in samples:
        fed = sample.tokens + sample.answer_tokens[:-1]
        with torch.inference_mode():
            attentions = model(torch.tensor([fed]), output_attentions=True).attentions
        value = sample.span("needle_value")
        for step, answer_token in enumerate(sample.answer_tokens):
            tokens += 1
            for layer, attention in enumerate(attentions):
                for head in range(attention.shape[1]):
                    key = int(attention[0, head, len(sample.tokens) - 1 + step].argmax())
                    hit = value.start <= key < value.stop and fed[key] == answer_token
                    hits[layer, head] = hits.get((layer, head), 0) + hit
    scores = {head: count / tokens for head, count in hits.items()}
    named = {(layer, head) for layer, head, score in card["figures"]["retrieval"]["strict_score"] if score > 0.1}
    assert len(named) == 4
    assert {layer for layer, _ in named} == {2}
    assert min(scores[head] for head in named) > 0.9
    assert max(score for head, score in scores.items() if head not in named) < 0.1


def test_answers_break_without_these_heads_and_not_without_others(
    model: Any, tokenizer: Any, card: dict[str, Any]
) -> None:
    samples = list(needle((64, 256), (0.0, 0.5, 1.0), samples=4, seed=SEED).build(tokenizer))
    retrieving = [head for _, head, score in card["figures"]["retrieval"]["strict_score"] if score > 0.1]
    others = [head for head in range(16) if head not in retrieving]
    with zeroed(model, 2, retrieving):
        assert exact(model, samples) == 0
    for drawn in (others[:4], others[4:8], others[8:]):
        with zeroed(model, 2, drawn):
            assert exact(model, samples) >= 0.9


def test_the_card_agrees_with_itself(card: dict[str, Any]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(readme.split("---")[1])
    assert front["trained_length"] == card["trained_length"] == 256
    assert front["license"] == "apache-2.0"
    assert card["engineered"] is True
    for length in ("64", "128", "256"):
        assert card["figures"]["exact_by_length"][length]["exact"] >= 0.95
        assert min(card["figures"]["exact_by_depth"][length]["exact"]) >= 0.95


def test_training_is_deterministic() -> None:
    train = runpy.run_path(str(FOLDER / "train.py"))["train"]
    first, second = (train(seed=3, steps=2, all_heads_from=1, heads=16).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
