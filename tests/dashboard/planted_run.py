"""A run of planted answers, without any array: what the pages over many units are checked with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probe.outcome import Outcome
from probe.sample import Sample, Span
from probe.storage.store import RunStore, write_json

LENGTHS, DEPTHS, NUM_SAMPLES = (64, 1024), (0.0, 0.25, 1.0), 6


def right(length: int, depth: float, draw: int) -> bool:
    """Return whether an untouched sample is right: all short ones, of the long ones those that stand last."""
    return length == 64 or depth == 1.0 or (depth == 0.25 and draw == 0)


def planted() -> Iterator[dict[str, Any]]:
    """Yield every unit: the baseline, a treatment that loses what stands first, and a control of two draws."""
    for length in LENGTHS:
        for depth in DEPTHS:
            for i in range(NUM_SAMPLES):
                cell = {"length": length, "depth": depth, "sample": f"needle-{length}-{depth}-s{i}"}
                untouched = right(length, depth, i)
                yield {**cell, "condition": "baseline", "role": "baseline", "draw": None, "correct": untouched}
                treated = untouched and depth > 0
                yield {**cell, "condition": "treated", "role": "treatment", "draw": None, "correct": treated}
                for draw in (0, 1):
                    spared = untouched and (draw == 0 or i % 2 == 0)
                    yield {**cell, "condition": "control", "role": "control", "draw": draw, "correct": spared}


def loss(unit: dict[str, Any]) -> float:
    """Return the answer loss that is planted, in nats per token."""
    return float(0.25 + (0 if unit["correct"] else 2) + (unit["depth"] or 0))


def unit_id(unit: dict[str, Any]) -> str:
    """Return what a unit is called."""
    return f"{unit['condition']}-{unit['draw'] or 0}-{unit['sample']}"


def write_unit(store: RunStore, unit: dict[str, Any], **changed: Any) -> None:
    """Write one unit of a run; `changed` are fields of its outcome."""
    spans = (Span("needle", 1, 3),)
    facts = {"length": unit["length"], "needle_depth": unit["depth"], "half": "test"}
    sample = Sample(unit["sample"], tuple(range(8)), spans, (5,), " <b>7</b>", "a text", facts)
    outcome = {
        "response": " <b>7</b>" if unit["correct"] else " </script>8",
        "response_tokens": (5 if unit["correct"] else 6,),
        "correct": unit["correct"],
        "success_rule": "exact",
        "answer_log_probability": (-loss(unit),),
        "text_loss": 1.5,
        **changed,
    }
    facts = {"role": unit["role"], "draw": unit["draw"], "intervention": None, "workload": {}}
    with store.begin_unit(
        unit_id(unit), stage="read", condition=unit["condition"], facts=facts, sample=sample
    ) as writer:
        writer.commit(Outcome(**outcome))


def write_run(path: Path, units: list[dict[str, Any]], **record: Any) -> Path:
    """Write a run of such units, with its record."""
    path.mkdir()
    with RunStore(path) as store:
        for unit in units:
            write_unit(store, unit)
    write_json(path / "run.json", {"format": 1, "status": "complete", **record})
    return path
