"""Heads whose slow rotary pairs weigh more the further back a key stands; and heads that do not care."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from probe.finding import Finding
from probe.kernels.call import Call
from probe.kernels.scan import Scan
from probe.sample import Sample
from tests.analyses.conftest import StandIn, make_trace

LENGTH, NUM_PROMPTS, TRAINED = 320, 16, 256
SHAPE, NUM_PAIRS = (2, 4), 4
TRUTH = {(0, 2), (1, 0)}
STRENGTHS = (0.0, 0.2, 0.25, 0.3, 0.4, 1.0)
PARAMETERS = {"trained_length": TRAINED}
FREQUENCIES = tuple(10_000.0 ** (-d / NUM_PAIRS) for d in range(NUM_PAIRS))
POSITIONS = {
    "layers": {str(layer): {"kind": "rotary", "table": "all"} for layer in range(SHAPE[0])},
    "rotary": {"all": {"inverse_frequencies": list(FREQUENCIES)}},
    "training_length": {"tokens": TRAINED, "source": "made up"},
}


def found(finding: Finding) -> frozenset[tuple[int, int]]:
    """The heads that are positional."""
    rows = [row for row in finding.records() if row["positional"]]
    return frozenset((int(str(row["layer"])), int(str(row["head"]))) for row in rows)


@cache
def pairs() -> torch.Tensor:
    """Halves turn together, as in Llama."""
    return torch.arange(2 * NUM_PAIRS).reshape(2, NUM_PAIRS).T


def turned(vector: np.ndarray) -> torch.Tensor:
    """Vectors `[head token channel]`, each turned as its position says."""
    angle = np.arange(vector.shape[1])[:, None] * np.array(FREQUENCIES)
    first, second = vector[..., :NUM_PAIRS], vector[..., NUM_PAIRS:]
    return torch.from_numpy(
        np.concatenate(
            [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
        )
    )


def trace(index: int, queries: list[torch.Tensor], keys: list[torch.Tensor]) -> Any:
    """One prompt whose layers have these queries and keys, read by the toolkit's own statistics."""
    arrays: dict[str, list[np.ndarray]] = {}
    dims: dict[str, tuple[str, ...]] = {}
    for layer, (query, key) in enumerate(zip(queries, keys, strict=True)):
        scan = Scan(["rope_share", "rope_correlation"])
        scan.update(Call(layer, query, key, key, NUM_PAIRS**-0.5, rotary_pairs=pairs()))
        for name, result in scan.finish().items():
            arrays.setdefault(name, []).append(result.values.numpy())
            dims[name] = ("layer", *result.dims)
    sample = Sample(f"positional-{index}", tuple(range(3, 3 + LENGTH)), answer_tokens=(1,))
    made = make_trace(sample, arrays={name: (dims[name], np.stack(each)) for name, each in arrays.items()})
    made.provenance = {"positions": POSITIONS}
    return made


def random(generator: np.random.Generator) -> np.ndarray:
    """Random vectors of one layer's heads, `[head token channel]`."""
    return generator.standard_normal((SHAPE[1], LENGTH, 2 * NUM_PAIRS))


def null(seed: int) -> list[Any]:
    """Synthetic: random queries and keys, turned by their positions."""
    generator = np.random.default_rng(seed)
    return [
        trace(i, *([turned(random(generator)) for _ in range(SHAPE[0])] for _ in range(2))) for i in range(NUM_PROMPTS)
    ]


def null_strong(seed: int) -> list[Any]:
    """Synthetic: as the first, and in two heads low-frequency pairs carry most of every logit, near and far alike."""
    generator = np.random.default_rng(seed)
    made = []
    for i in range(NUM_PROMPTS):
        layers: list[list[torch.Tensor]] = [[], []]
        for layer in range(SHAPE[0]):
            for side in layers:
                vector = random(generator)
                for _, head in (at for at in TRUTH if at[0] == layer):
                    vector[head, :, [2, 3, 6, 7]] *= 3
                side.append(turned(vector))
        made.append(trace(i, *layers))
    return made


def null_untrained(seed: int) -> list[Any]:
    """Random weights: 16 prompts of random tokens through a Llama of 2 layers and 4 heads, its weights drawn anew, and
    how wide they are, for every null."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=TRAINED,
        initializer_range=float(generator.uniform(0.02, 0.4)),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    names = ["rope_share", "rope_correlation"]
    prompts = [
        Sample(f"random-{i}", tuple(generator.integers(1, 128, LENGTH).tolist()), answer_tokens=(1,))
        for i in range(NUM_PROMPTS)
    ]
    read = [probe.trace(model, each, statistics=names, check=False, max_new_tokens=1) for each in prompts]
    return [
        StandIn(t.sample, t.outcome, t.dataset, {"role": "baseline"}, unit=t.sample.name, provenance=t.provenance)
        for t in read
    ]


def planted(strength: float, seed: int) -> list[Any]:
    """In two of 8 heads the low-frequency pairs' parts grow with distance: of their queries and keys, random like the
    others' beside it, a channel of the slowest pair grows along the text in the query, and its other falls in the key.
    The strength is how fast."""
    generator = np.random.default_rng(seed)
    made = []
    ramp = np.linspace(0, 1, LENGTH)
    for i in range(NUM_PROMPTS):
        queries, keys = [], []
        for layer in range(SHAPE[0]):
            query, key = random(generator), random(generator)
            for _, head in (at for at in TRUTH if at[0] == layer):
                # q·k of two channels that turn by next to nothing: 12 · strength · (a − b) for positions a and b.
                query[head, :, 3], query[head, :, 7] = 12 * strength * ramp + query[head, :, 3], 1.0
                key[head, :, 3], key[head, :, 7] = 1.0, key[head, :, 7] - 12 * strength * ramp
            queries.append(turned(query))
            keys.append(turned(key))
        made.append(trace(i, queries, keys))
    return made
