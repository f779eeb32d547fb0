"""A run whose heads' numbers are known: planted statistics, findings with tables of heads, heads removed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probe.finding import Finding, Measurement, Suggestion
from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.store import RunStore, write_json
from tests.dashboard.conftest import HOSTILE

TOKENS, HEADS, KV_HEADS, BLOCK = 100, 4, 2, 64
LAYERS = (0, 3)
PROMPTS = 6


class HeadRun:
    """Layers 0 and 3 of four query heads over two key-value heads, 100 tokens; entropy in blocks of 64 and 36."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(3)
        self.path = path
        self.entropy = {layer: random.uniform(0, 4, (HEADS, 2)).astype(np.float32) for layer in LAYERS}
        self.sink = {layer: random.uniform(0, 1, (HEADS, TOKENS)).astype(np.float32) for layer in LAYERS}
        self.received = {layer: random.uniform(0, 2, (HEADS, TOKENS)).astype(np.float32) for layer in LAYERS}
        # Nats that removing the head alone costs each prompt.
        self.cost = {0: np.linspace(0.1, 0.6, PROMPTS), 3: np.linspace(-0.2, 0.2, PROMPTS)}
        ids = random.integers(0, len(HOSTILE), TOKENS)
        # The largest keys of the answer's query hold markup that would run.
        ids[10], ids[95] = 2, 6
        tokens = tuple(int(t) for t in ids)
        conditions = [
            {"name": "baseline", "role": "baseline", "workload": {}, "intervention": None, "draw": None},
            *(
                {"name": f"without-{head}", "role": "treatment", "workload": {}, "draw": None,
                 "intervention": {"ablate_heads": {"heads": [[3, head]], "form": "zero", "phase": "both"}}}
                for head in self.cost
            ),
        ]  # fmt: skip
        units = []
        with RunStore(path) as store:
            for prompt in range(PROMPTS):
                spans = (Span("needle", 10, 20), Span("<b>q</b>", 90, TOKENS))
                sample = Sample(f"s{prompt}", (prompt, *tokens[1:]), spans)
                for condition in conditions:
                    name, role = str(condition["name"]), str(condition["role"])
                    head = None if role == "baseline" else int(name[-1])
                    unit = f"{name}-{prompt}"
                    units.append(unit)
                    about: dict[str, Any] = {"stage": "read", "condition": name, "facts": {"role": role}}
                    with store.begin_unit(unit, sample=sample, **about) as writer:
                        if prompt == 0 and head is None:
                            self._capture(writer)
                        loss = 1.0 + prompt + (0.0 if head is None else self.cost[head][prompt])
                        # With head 0 removed the first half of the prompts is answered wrong.
                        right = head != 0 or prompt >= PROMPTS // 2
                        writer.commit(Outcome("x", correct=right, answer_log_probability=(-loss, -loss)))
        first = [unit for unit in units if unit.startswith("without-0")]
        write_json(path / "findings.json", [each.to_json() for each in _findings(first)])
        casebook = {
            "format": 1, "name": "planted", "question": "?", "model": "needle", "seed": 3, "stages": [],
            "workload": {"needle": {"lengths": [64], "depths": [0.5], "samples": 2}},
        }  # fmt: skip
        stages = {"read": {"conditions": conditions}}
        write_json(path / "run.json", {"format": 1, "status": "complete", "casebook": casebook, "stages": stages})

    def _capture(self, writer: Any) -> None:
        for layer in LAYERS:
            starts = {"query_block": np.array([0, BLOCK])}
            histogram = np.tile([30.0, 20.0, 50.0, 0.0], (HEADS, 1))
            # All of head 1's attention is 4 to 7 tokens back.
            histogram[1] = (0, 0, 0, 100)
            offset = np.zeros((HEADS, 3))
            offset[:, 1] = 99 * np.array([0.5, 0.25, 0, 1])
            top = np.tile([10, 95, 0], (HEADS, 1, 1))
            writer.write_layer(
                layer,
                {
                    "entropy": Array(
                        ("head", "query_block"), self.entropy[layer], "nats", coordinates=starts, block_tokens=BLOCK
                    ),
                    "sink_mass": Array(("head", "query"), self.sink[layer], "probability"),
                    "received_mass": Array(("head", "key"), self.received[layer], "probability"),
                    "key_norm": Array(("kv_head", "key"), np.ones((KV_HEADS, TOKENS)) * [[1.0], [2.0]]),
                    "distance_histogram": Array(
                        ("head", "distance_bin"), histogram, coordinates={"distance_bin": np.array([0, 1, 2, 4])}
                    ),
                    "offset_mass": Array(("head", "offset"), offset, coordinates={"offset": np.arange(3)}),
                    "span_mass": Array(
                        ("head", "row", "span"),
                        np.arange(HEADS * 2.0).reshape(HEADS, 1, 2) / 10,
                        coordinates={"span": np.array(["needle", "<b>q</b>"])},
                    ),
                    "top_keys": Array(("head", "row", "rank"), top, "position"),
                    "top_keys_probability": Array(
                        ("head", "row", "rank"), np.tile([0.5, 0.3, 0.2], (HEADS, 1, 1)), "probability"
                    ),
                },
            )
        writer.write_token_text(dict(enumerate(HOSTILE)))
        writer.note(num_queries=TOKENS)


def _findings(evidence: list[str]) -> list[Finding]:
    said: dict[str, Any] = {"question": "?", "verdict": "supported", "definition": "planted", "source": "s"}
    measured = Measurement(name="x", value=1.0, n=1)
    heads = [(layer, head) for layer in LAYERS for head in range(HEADS)]
    return [
        Finding(
            analysis="head_roles",
            claim="roles",
            measured=measured,
            columns=("layer", "head", "roles", "streaming", "kv_head", "moves", "nothing"),
            table=tuple(
                (*at, "sink" if at == (3, 1) else "", i / 10, 0, i % 2 == 0, None) for i, at in enumerate(heads)
            ),
            suggests=(Suggestion(intervention="ablate_heads", fields={"heads": [[3, 1]]}, reason="r"),),
            **said,
        ),
        Finding(
            analysis="by_length",
            claim="twice",
            measured=measured,
            columns=("layer", "head", "score"),
            table=((0, 0, 1.0), (0, 0, 2.0)),
            **said,
        ),
        Finding(
            analysis="head_ablation", claim="it <b>breaks</b>", measured=measured, evidence=tuple(evidence), **said
        ),
    ]
