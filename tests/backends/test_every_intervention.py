"""Every intervention that there is does through TransformerLens and nnsight what it does through transformers."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe import discovery
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.add_pause_tokens import add_pause_tokens
from probe.hooks.block_attention import block_attention
from probe.hooks.cap_logits import cap_logits
from probe.hooks.decimate_tokens import decimate_tokens
from probe.hooks.forget_faster import forget_faster
from probe.hooks.forget_more_remember_less import forget_more_remember_less
from probe.hooks.found_in_the_middle import found_in_the_middle
from probe.hooks.full_and_streaming_heads import full_and_streaming_heads
from probe.hooks.heavy_hitters import heavy_hitters
from probe.hooks.insert_sink import insert_sink
from probe.hooks.interpolate_positions import interpolate_positions
from probe.hooks.intervention import Intervention
from probe.hooks.keep_sinks_and_recent import keep_sinks_and_recent
from probe.hooks.key_norm import key_norm
from probe.hooks.limit_distance import limit_distance
from probe.hooks.log_length_scaling import log_length_scaling
from probe.hooks.merge_layers import merge_layers
from probe.hooks.move_documents import move_documents
from probe.hooks.ms_poe import ms_poe
from probe.hooks.normalise_state import normalise_state
from probe.hooks.ntk_scaling import ntk_scaling
from probe.hooks.patch_heads import patch_heads
from probe.hooks.prepend_sink_token import prepend_sink_token
from probe.hooks.question_twice import question_twice
from probe.hooks.randomise_positions import randomise_positions
from probe.hooks.remove_sink import remove_sink
from probe.hooks.rescale_decay import rescale_decay
from probe.hooks.reset_document_positions import reset_document_positions
from probe.hooks.scale_heads import scale_heads
from probe.hooks.select_input import select_input
from probe.hooks.self_extend import self_extend
from probe.hooks.sequence.sample_read import prepared, reading
from probe.hooks.set_activations import set_activations
from probe.hooks.sharpen_top_k import sharpen_top_k
from probe.hooks.slide_state import slide_state
from probe.hooks.snapkv import snapkv
from probe.hooks.sort_documents import sort_documents
from probe.hooks.temperature import temperature
from probe.hooks.think_channels import think_channels
from probe.hooks.together import together
from probe.hooks.tova import tova
from probe.hooks.yarn import yarn
from probe.sample import Sample, Span
from tests.backends.conftest import WAYS, made
from tests.recurrent.conftest import make as made_recurrent

OF_ATTENTION: tuple[Intervention, ...] = (
    ablate_heads([(0, 1)], form="uniform"),
    add_pause_tokens(3, 7),
    block_attention((5, 12), (20, 50)),
    cap_logits(2.0),
    found_in_the_middle(dummy_attention=[0.02, 0.005, 0.01], pool="layer", phase="both"),
    full_and_streaming_heads([(0, 1)], 16),
    heavy_hitters(16),
    insert_sink(),
    interpolate_positions(2.0),
    keep_sinks_and_recent(16, 2),
    key_norm(16),
    limit_distance(12, num_first=3),
    log_length_scaling(training_length=16),
    merge_layers(start=0),
    move_documents("reversed"),
    ms_poe(first_layer=0, r_max=6),
    ntk_scaling(4.0, training_length=16),
    patch_heads([(1, 2)], range(1, 60)),
    prepend_sink_token(7),
    question_twice(separator=()),
    randomise_positions(200, 0),
    remove_sink(),
    reset_document_positions(),
    scale_heads([(0, 1)], 0.5),
    select_input(1, 20),
    self_extend(4, 8),
    set_activations(0, [3, 5], [4.0, -4.0], [2, 40]),
    sharpen_top_k(4),
    snapkv(16, window=4),
    sort_documents(highest="first"),
    temperature(0.5),
    think_channels(0.5),
    together([add_pause_tokens(3, 7), yarn(4.0, training_length=16), temperature(0.5), tova(16)]),
    tova(16),
    yarn(4.0, training_length=16),
)
OF_RECURRENCES: tuple[Intervention, ...] = (
    decimate_tokens(8),
    forget_faster([(0, 0)], [3.0]),
    forget_more_remember_less(0.9, 0.7),
    normalise_state(0.5),
    rescale_decay(0.25),
    slide_state(10),
)
CASES = [
    *(("llama", each) for each in OF_ATTENTION),
    *((family, each) for family in ("mamba", "mamba2", "jamba") for each in OF_RECURRENCES),
]
NEEDS_ANOTHER_PACKAGE = {"kvpress"}

SAMPLE = Sample(
    "s",
    tuple(np.random.default_rng(5).integers(1, 60, 61).tolist()),
    spans=(
        Span("document_0", 2, 17), Span("document_1", 17, 30), Span("document_2", 30, 48), Span("question", 50, 59),
    ),
)  # fmt: skip


@functools.cache
def loaded(family: str, way: str) -> Any:
    """One model for all interventions, each of which leaves it as it was."""
    own = made(family) if family == "llama" else made_recurrent(family, initializer_range=0.15)
    return probe.load(own if way == "transformers" else WAYS[way](own))


def last_logits(model: Any, intervention: Intervention | None = None) -> torch.Tensor:
    """Logits of the sample's last three tokens, after the others as a prompt: both phases of reading."""
    with contextlib.nullcontext() if intervention is None else intervention(model):
        ready = prepared(model.hf, SAMPLE)
        with reading(ready):
            state = model.prefill(ready.tokens[:-3])
            found = model.step(state, ready.tokens[-3:])
    assert isinstance(found, torch.Tensor)
    return found


@functools.cache
def untouched(family: str, way: str) -> torch.Tensor:
    return last_logits(loaded(family, way))


def test_none_is_forgotten() -> None:
    there = {type(each).__name__ for _, each in CASES}
    assert there == {*discovery.names("hooks")} - NEEDS_ANOTHER_PACKAGE


@pytest.mark.parametrize("way", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize(
    ("family", "intervention"), CASES, ids=[f"{family}-{type(each).__name__}" for family, each in CASES]
)
def test_the_logits_are_those_of_transformers(family: str, intervention: Intervention, way: str) -> None:
    expected, before = last_logits(loaded(family, "transformers"), intervention), untouched(family, "transformers")
    assert not torch.allclose(expected, before, atol=1e-3), "it does nothing to this model"
    model = loaded(family, way)
    plain = untouched(family, way)
    intervention.check(model, SAMPLE)
    torch.testing.assert_close(last_logits(model, intervention), expected, rtol=1e-4, atol=2e-5)
    assert torch.equal(last_logits(model), plain)
