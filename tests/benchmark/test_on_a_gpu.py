"""What a GPU would get, on a machine that has none: the plan, the clock, the count of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from probe.benchmark import ladder, measuring
from probe.benchmark.case import Prepared
from probe.benchmark.cases import case_of
from probe.benchmark.memory import CudaMemory, available_bytes
from probe.benchmark.planning import Asked, plan_of
from probe.benchmark.result import Job, LayerShape, Measurement
from probe.benchmark.shapes import MODELS
from probe.progress import Silent


class FakeCuda:
    """Time passes and memory is taken as `work` says."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self.held = 100
        self.most = 999
        self.current: list[str] = []

    def work(self, milliseconds: float, taken: int) -> None:
        self.milliseconds += milliseconds
        self.most = max(self.most, self.held + taken)

    def reset_peak(self, device: str) -> None:
        self.most = self.held

    @contextmanager
    def device(self, device: str) -> Iterator[None]:
        self.current.append(device)
        yield
        self.current.pop()

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        assert self.current == ["cuda"], "an event belongs to the device that is the current one"
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.at = 0.0

    def record(self) -> None:
        self.at = self.cuda.milliseconds

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at - self.at


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "Event": fake.event,
        "device": fake.device,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device: fake.held,
        "memory_reserved": lambda device: fake.held,
        "max_memory_allocated": lambda device: fake.most,
        "reset_peak_memory_stats": fake.reset_peak,
        "mem_get_info": lambda device: (80 * 10**9 - fake.held, 80 * 10**9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


def test_without_options_the_ladder_holds_the_shape_of_an_8b_layer_at_32768(cuda: FakeCuda) -> None:
    plan = plan_of(Asked())
    assert plan.device == "cuda"
    assert plan.dtype == "bfloat16"
    assert plan.layer == LayerShape(heads=32, kv_heads=8, head_dim=128)
    assert {32_768, 131_072} <= set(plan.layer_lengths)
    assert plan.engines == ("triton", "blocked")


def test_the_8b_shape_has_eight_billion_weights() -> None:
    # Llama 3 8B: 8.03 billion, norms not counted here.
    assert MODELS["8b"].num_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert MODELS["8b"].head_dim * MODELS["8b"].heads == MODELS["8b"].hidden


def test_a_measurement_takes_the_gpus_own_time_and_memory(
    cuda: FakeCuda, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [("forward", lambda: cuda.work(30, 50)), ("scan", lambda: cuda.work(20, 400))]
    monkeypatch.setattr(type(case_of("scan_after_flash")), "prepare", lambda *_: Prepared(steps, lambda: "triton"))
    job = Job(case="scan_after_flash", length=16, engine="triton", statistics="core")
    found = measuring.measure(make.plan(device="cuda", dtype="bfloat16"), job)
    assert found.clock == "cuda events"
    assert found.parts == {"forward": pytest.approx((0.03, 0.03)), "scan": pytest.approx((0.02, 0.02))}
    assert (found.before_bytes, found.peak_bytes, found.extra_bytes) == (100, 500, 400)
    assert found.memory == "allocated on the GPU"
    assert found.ran == "triton"


def test_weights_that_are_there_count_as_free_for_the_model_that_needs_them(cuda: FakeCuda) -> None:
    cuda.held = 16 * 10**9
    assert available_bytes("cuda") == 80 * 10**9


def test_an_earlier_peak_is_forgotten(cuda: FakeCuda) -> None:
    meter = CudaMemory("cuda")
    assert meter.begin() == 100
    assert meter.peak() == 100
    cuda.work(1, 5)
    assert meter.peak() == 105


def test_a_gpu_is_measured_in_this_process(cuda: FakeCuda, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Job] = []

    def measured(plan: object, job: Job) -> Measurement:
        seen.append(job)
        return Measurement(job=job, skipped="a fake")

    monkeypatch.setattr(ladder, "machine", lambda device: make.bench().machine)
    monkeypatch.setattr(ladder, "measure", measured)
    monkeypatch.setattr(ladder, "measure_apart", lambda *_: pytest.fail("a process of its own"))
    plan = make.plan(device="cuda", dtype="bfloat16", engines=("triton", "blocked"))
    ladder.climb(plan, command="c", progress=Silent())
    assert {job.engine for job in seen} == {None, "triton", "blocked"}


def test_n_by_n_at_32768_tokens_of_an_8b_layer_is_left_out_by_arithmetic(cuda: FakeCuda) -> None:
    plan = plan_of(Asked(only="scan"))
    found = measuring.measure(plan, Job(case="eager", length=32_768, statistics="core"))
    # 32 heads, a bfloat16 matrix and two float32 ones.
    assert found.needed_bytes == 32 * 32_768**2 * 10
    assert found.skipped == "it does not fit into memory"
