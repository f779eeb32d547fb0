"""A synthetic run as large as the explorer's bars ask for: `python -m tests.dashboard.large_run FOLDER`.

131,072 tokens, 32 layers of 32 heads (8 key-value heads), two samples under two conditions; the arrays have the shapes,
names and block sizes that capture gives at that length, their values a closed form: a sink, a slope with distance, and
in some heads a stretch that the last queries look for. Layer 1 of each first unit has its queries and keys, equal
within blocks of 64 tokens, so that its log-sum-exp is exact: with a score s for each pair of blocks, a query at place r
in block b has Z = Σ_{b'<b} 64 exp(s_bb') + (r + 1) exp(s_bb).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from probe import chart
from probe.finding import Finding, Interval, Measurement, Suggestion
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, UnitWriter, write_json
from tests.dashboard.conftest import keep_vectors, map_arrays

TOKENS, LAYERS, HEADS, KV_HEADS = 131_072, 32, 32, 8
BLOCK, CELLS = 64, 256
CONDITIONS = {"baseline": "baseline", "heads-removed": "treatment"}


def write_large_run(
    path: Path, tokens: int = TOKENS, layers: int = LAYERS, heads: int = HEADS, samples: int = 2
) -> Path:
    """Write the run and return its folder; the first unit of each condition has maps and vectors."""
    random = np.random.default_rng(0)
    ids = tuple((np.arange(tokens) * 7919 % 50_000).tolist())
    needle = int(0.4 * tokens)
    spans = (Span("needle", needle, needle + 40), Span("question", tokens - 72, tokens))
    units = []
    with RunStore(path) as store:
        for number in range(samples):
            facts = {"length": tokens, "depth": number / max(1, samples - 1), "workload": "needle"}
            sample = Sample(f"needle-{number}", ids, spans, facts=facts)
            for condition, role in CONDITIONS.items():
                unit = f"{condition}-needle-{number}"
                units.append(unit)
                about: dict[str, Any] = {"stage": "read", "condition": condition, "facts": {"role": role}}
                with store.begin_unit(unit, sample=sample, **about) as writer:
                    for layer in range(layers):
                        _write_layer(writer, layer, tokens, heads, random, whole=number == 0)
                    if number == 0:
                        _keep(writer, tokens, heads, random)
                    loss = 2 + np.sin(np.arange(tokens) / 3000) + random.normal(size=tokens) * 0.1
                    writer.write({"loss": Array(("token",), loss.astype(np.float32), "nats")})
                    writer.write_token_text({token: f" w{token}" for token in range(50_000)})
                    writer.note(num_queries=tokens)
                    right = condition == "baseline"
                    writer.commit(
                        Outcome(
                            "w1" if right else "w2", (1 if right else 2,), correct=right, text_loss=float(loss.mean())
                        )
                    )
    write_json(path / "findings.json", [_finding(layers, heads, units, random).to_json()])
    write_json(path / "run.json", _record())
    return path


def _write_layer(
    writer: UnitWriter, layer: int, tokens: int, heads: int, random: np.random.Generator, *, whole: bool
) -> None:
    blocks = tokens // BLOCK
    at = np.arange(blocks) / blocks
    strength = random.uniform(0.05, 0.95, size=(heads, 1)).astype(np.float32)
    starts = np.arange(blocks) * BLOCK
    arrays: dict[str, Array] = {}
    for name, dim, unit, values in (
        ("entropy", "query_block", "nats", strength * np.log1p(at * tokens)),
        ("sink_mass", "query_block", "probability", (1 - strength) * (0.4 + 0.5 * at)),
        ("recent_mass", "query_block", "probability", strength * (1 - 0.6 * at)),
        ("mean_distance", "query_block", "tokens", strength * at * tokens / 2),
        ("max_probability", "query_block", "", 1 - strength * at),
        ("received_mass", "key_block", "probability", (1 - at) * strength * 3),
    ):
        for end, scale in (("", 1.0), ("_max", 1.3)):
            coordinates = {dim: starts}
            array = Array(
                ("head", dim), np.asarray(values * scale, np.float32), unit, coordinates=coordinates, block_tokens=BLOCK
            )
            arrays[name + end] = array
    distance = np.array([0, *2 ** np.arange(int(np.log2(tokens)) + 1)])
    mass = strength ** np.arange(len(distance)) * tokens
    arrays["distance_histogram"] = Array(
        ("head", "distance_bin"), mass.astype(np.float32), "probability", coordinates={"distance_bin": distance}
    )
    if whole:
        block = tokens // CELLS
        row, column = np.indices((CELLS, CELLS))
        far = np.exp(-(row - column) / (CELLS * strength[:, :, None])) + 30 * (1 - strength[:, :, None]) * (column == 0)
        far = np.where(column <= row, far, 0)
        mean = (far / far.sum(2, keepdims=True)).astype(np.float32)
        arrays |= map_arrays(mean, np.minimum(1, mean * 4), block)
    writer.write_layer(layer, arrays)


def _keep(writer: UnitWriter, tokens: int, heads: int, random: np.random.Generator) -> None:
    """Write layer 1's queries and keys, and the log-sum-exp that they have in closed form."""
    blocks, kv_heads = tokens // BLOCK, max(1, heads * KV_HEADS // HEADS)
    at = np.arange(blocks) / blocks
    keys = [
        np.column_stack([random.normal(size=(blocks, 4)) * 0.5, 6.0 * (at == 0), 2 * at, 8.0 * (abs(at - 0.4) < 0.01)])
        for _ in range(kv_heads)
    ]
    queries, log_z = [], []
    for head in range(heads):
        query = np.column_stack([random.normal(size=(blocks, 4)) * 0.5, np.ones(blocks), 2 * at, at > 0.97])
        score = np.exp(np.tril(query @ keys[head * kv_heads // heads].T))
        own = np.diagonal(score)
        z = BLOCK * np.tril(score, -1).sum(1)[:, None] + own[:, None] * np.arange(1, BLOCK + 1)
        queries.append(query)
        log_z.append(np.log(z).ravel())
    vectors = (np.repeat(np.stack(each), BLOCK, axis=1).astype(np.float32) for each in (queries, keys))
    keep_vectors(writer, 1, *vectors, np.stack(log_z).astype(np.float32), 1.0)


def _finding(layers: int, heads: int, units: list[str], random: np.random.Generator) -> Finding:
    score = random.beta(0.3, 6, size=(layers, heads))
    data, layout = chart.atlas(score, np.ones_like(score, bool), unit="copying score")
    title, caption = "Heads that copy", "A synthetic score of each head."
    rows = tuple((layer, head, float(score[layer, head])) for layer in range(layers) for head in range(heads))
    best = np.argsort(score.ravel())[::-1][:4]
    chosen: Any = [[int(i // heads), int(i % heads)] for i in best]
    return Finding(
        analysis="retrieval_heads",
        question="Which heads copy the answer from where it stands in the context?",
        headline="A few heads copy the answer",
        claim=f"4 of {layers * heads} heads copy the answer (synthetic).",
        verdict="supported",
        measured=Measurement(
            name="share of heads",
            value=0.4,
            unit="%",
            n=4,
            interval=Interval(low=0.1, high=1.0, method="synthetic"),
        ),
        columns=("layer", "head", "score"),
        table=rows,
        figures=(chart.figure("retrieval_atlas", title, caption, data, layout),),
        suggests=(Suggestion(intervention="ablate_heads", fields={"heads": chosen}, reason="They copy."),),
        definition="synthetic",
        source="this toolkit's own",
        evidence=tuple(units),
    )


def _record() -> dict[str, Any]:
    return {
        "format": 1,
        "status": "complete",
        "casebook": {
            "format": 1,
            "name": "large",
            "question": "How large a run can be looked at?",
            "model": "synthetic",
        },
        "provenance": {"model": "synthetic"},
        "command": "python -m tests.dashboard.large_run",
        "failed": [],
    }


if __name__ == "__main__":
    print(write_large_run(Path(sys.argv[1])))
