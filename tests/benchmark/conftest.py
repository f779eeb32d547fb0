"""Made-up results of a benchmark."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from probe.benchmark.result import Bench, Job, LayerShape, Machine, Measurement, ModelShape, Plan


def make_plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "repeats": 2,
        "enough_seconds": 5.0,
        "layer": LayerShape(heads=2, kv_heads=1, head_dim=8),
        "layer_lengths": (16, 32, 64),
        "engines": ("blocked",),
        "statistics": {"core": ("entropy", "received_mass")},
        "model": None,
        "model_lengths": (),
        "chunk_tokens": 32,
    }
    return Plan.model_validate(values | changes)


def make_measurement(case: str, length: int, seconds: dict[str, tuple[float, ...]], extra_bytes: int) -> Measurement:
    has_engine, has_statistics = case.startswith("scan"), case in ("eager", "scan_alone", "scan_after_flash", "traced")
    return Measurement(
        job=Job(
            case=case,
            length=length,
            engine="blocked" if has_engine else None,
            statistics="core" if has_statistics else None,
        ),
        parts=seconds,
        warm_up_seconds=9.0,
        loading_seconds=8.0,
        clock="perf_counter",
        before_bytes=1000,
        peak_bytes=1000 + extra_bytes,
        memory="resident memory of a process of its own",
        needed_bytes=10,
        available_bytes=10**9,
    )


def make_bench(*measurements: Measurement, **plan: object) -> Bench:
    return Bench(
        probe="0.1.0",
        made="2026-01-02T03:04:05+00:00",
        command="probe bench --lengths 16,32,64",
        complete=True,
        machine=Machine(
            system="Linux x86_64",
            processor="A processor",
            cores=8,
            all_cores=8,
            memory_bytes=16 * 10**9,
            gpu=None,
            gpu_memory_bytes=None,
            compiler="g++",
            python="3.11.9",
            torch="2.13.0",
            triton=None,
            transformers="5.23.0",
        ),
        plan=make_plan(**plan),
        measurements=measurements,
    )


class Make:
    """The functions above, for tests to call."""

    plan: Callable[..., Plan] = staticmethod(make_plan)
    measurement: Callable[..., Measurement] = staticmethod(make_measurement)
    bench: Callable[..., Bench] = staticmethod(make_bench)
    tiny = ModelShape(name="tiny", layers=2, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, vocabulary=50)


@pytest.fixture(scope="session")
def make() -> Make:
    """What the tests of this folder share."""
    return Make()
