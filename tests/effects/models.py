"""Traces of real models for nulls: random weights, and specimens whose samples are then permuted. Each is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from tests.analyses.conftest import StandIn

WORKLOAD_SEED = 5_000
"""Not a seed that a specimen was made or measured with."""
RETRIEVING = (2, 5, 9, 13)
"""Heads of the last layer of the specimen `needle` that retrieve, by its card."""


def untrained_attention(seed: int, *, num_prompts: int, length: int) -> np.ndarray:
    """Attention `[prompt layer head query key]` of a Llama of 2 layers and 8 heads with random weights.

    How wide they are the seed draws too. It is the model's own eager attention, over tokens drawn at random.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        initializer_range=float(generator.uniform(0.02, 0.4)),
        attn_implementation="eager",
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.inference_mode():
        read = model(torch.from_numpy(generator.integers(1, 128, (num_prompts, length))), output_attentions=True)
    return np.stack([layer.double().numpy() for layer in read.attentions], axis=1)


@cache
def needle_traces(lengths: tuple[int, ...], samples: int, captured: bool) -> tuple[StandIn, ...]:
    """What the specimen `needle` does at these lengths and five depths; with `captured`, where its heads look."""
    workload = probe.needle(lengths=lengths, samples=samples, seed=WORKLOAD_SEED)
    return _traces("needle", workload, [probe.retrieval_heads] if captured else [])


@cache
def flip_flop_traces(p: tuple[float, ...], samples: int) -> tuple[StandIn, ...]:
    """What the specimen `flip-flop` answers to each language."""
    return _traces("flip-flop", probe.flip_flop(lengths=(256,), p=p, samples=samples, seed=WORKLOAD_SEED), [])


@cache
def ablated(num_sets: int, num_prompts: int) -> tuple[tuple[Any, np.ndarray], ...]:
    """Sets of four heads of the last layer of the specimen `needle`, and which prompts are right without them.

    They are drawn among the twelve that do not retrieve; the prompts, of 512 tokens, are answered now and then.
    """
    model = probe.load("needle")
    others = [head for head in range(16) if head not in RETRIEVING]
    workload = probe.needle(lengths=(512,), depths=(0.5,), samples=num_prompts, seed=WORKLOAD_SEED)
    prompts = list(workload.build(model.tokenizer))
    generator, found = np.random.default_rng(0), []
    for _ in range(num_sets):
        heads = [[2, int(head)] for head in generator.choice(others, 4, replace=False)]
        with probe.ablate_heads([(layer, head) for layer, head in heads])(model):
            right = [bool(probe.trace(model, each, statistics=[]).outcome.correct) for each in prompts]
        found.append((heads, np.array(right)))
    return tuple(found)


@cache
def writes_without(
    layer: int, num_sets: int, num_prompts: int
) -> tuple[tuple[list[Any], list[np.ndarray]], list[tuple[list[list[int]], list[np.ndarray]]]]:
    """What heads of the specimen `needle` write for the answer, `[layer head row]`: samples with nothing removed, and
    sets of four heads of a layer with what is written without them, on as many prompts of 128 tokens."""
    model = probe.load("needle")
    workload = probe.needle(lengths=(128,), depths=(0.5,), samples=num_prompts, seed=WORKLOAD_SEED)
    prompts = list(workload.build(model.tokenizer))

    def written() -> list[np.ndarray]:
        read = [probe.trace(model, each, statistics=["span_logit"], max_new_tokens=1) for each in prompts]
        return [trace["span_logit_all"].to_numpy() for trace in read]

    generator, found = np.random.default_rng(0), []
    for _ in range(num_sets):
        heads = [[layer, int(head)] for head in generator.choice(16, 4, replace=False)]
        with probe.ablate_heads([(layer, head) for layer, head in heads])(model):
            found.append((heads, written()))
    return (prompts, written()), found


def permuted(values: Sequence[Any], seed: int) -> list[Any]:
    """The values in another order."""
    order = np.random.default_rng(seed).permutation(len(values))
    return [values[i] for i in order]


def with_facts(trace: StandIn, name: str, **facts: Any) -> StandIn:
    """The trace with other facts of its sample, under another name."""
    sample = dataclasses.replace(trace.sample, name=name, facts={**trace.sample.facts, **facts})
    return dataclasses.replace(trace, sample=sample)


def _traces(specimen: str, workload: Any, statistics: list[Any]) -> tuple[StandIn, ...]:
    model = probe.load(specimen)
    read = [probe.trace(model, sample, statistics=statistics) for sample in workload.build(model.tokenizer)]
    return tuple(
        StandIn(sample=t.sample, outcome=t.outcome, dataset=t.dataset, facts={"role": "baseline"}, unit=t.sample.name)
        for t in read
    )
