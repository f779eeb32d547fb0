"""What is measured of one layer: eager attention, SDPA alone, and the scan with and without a log-sum-exp."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from probe.benchmark.case import WIDTHS, Case, Prepared
from probe.benchmark.engines import ENGINES
from probe.benchmark.layer_inputs import input_bytes, layer_call
from probe.benchmark.result import Job, LayerShape, Plan

if TYPE_CHECKING:
    from probe.kernels.call import Call


class Eager(Case):
    """The statistics from the whole matrix."""

    name = "eager"
    section = "layer"

    def label(self, job: Job, ran: str | None = None) -> str:
        return "eager n × n"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        for name in plan.statistics:
            yield Job(case=self.name, length=length, statistics=name)

    def needed_bytes(self, plan: Plan, job: Job) -> int:
        """Return the size of the logits, the float32 probabilities and one matrix between; there are more at times."""
        shape = _shape(plan)
        matrix = shape.heads * job.length * job.length
        return matrix * (WIDTHS[plan.dtype] + 4 + 4)

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        from probe.benchmark.eager import eager_statistics

        call = layer_call(_shape(plan), job.length, device=plan.device, dtype=plan.dtype)
        assert job.statistics is not None
        names = plan.statistics[job.statistics]
        return Prepared([("eager", lambda: eager_statistics(call, names))])


class Sdpa(Case):
    """The layer's attention and no statistics: what everything is compared with."""

    name = "sdpa"
    section = "layer"

    def label(self, job: Job, ran: str | None = None) -> str:
        return "SDPA alone"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        yield Job(case=self.name, length=length)

    def needed_bytes(self, plan: Plan, job: Job) -> int:
        return _forward_bytes(plan, job)

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        import torch

        call = layer_call(_shape(plan), job.length, device=plan.device, dtype=plan.dtype)
        query, key, value = (each[None] for each in (call.query, call.key, call.value))

        @torch.no_grad()
        def forward() -> object:
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=call.scale, enable_gqa=True
            )

        return Prepared([("forward", forward)])


class ScanAfterFlash(Case):
    """The scan with the log-sum-exp that a flash forward of the same layer hands over."""

    name = "scan_after_flash"
    section = "layer"

    def label(self, job: Job, ran: str | None = None) -> str:
        return f"flash + scan ({ran or job.engine})"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        yield from _of_every_engine(self.name, plan, length)

    def needed_bytes(self, plan: Plan, job: Job) -> int:
        return _forward_bytes(plan, job)

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        import torch

        from probe.kernels.flash_attention import flash_attention

        call = layer_call(_shape(plan), job.length, device=plan.device, dtype=plan.dtype)
        handed: dict[str, Any] = {}

        @torch.no_grad()
        def forward() -> None:
            # The output stays as long as a model would hold it.
            handed["output"], log_sum_exp = flash_attention(
                call.query[None], call.key[None], call.value[None], scale=call.scale, causal=True
            )
            handed["call"] = dataclasses.replace(call, log_sum_exp=log_sum_exp[0])

        scan = _Scan(plan, job)
        return Prepared([("forward", forward), ("scan", lambda: scan.over(handed["call"]))], scan.ran)


class ScanAlone(Case):
    """The scan where nothing hands over a log-sum-exp: two passes."""

    name = "scan_alone"
    section = "layer"

    def label(self, job: Job, ran: str | None = None) -> str:
        return f"scan ({ran or job.engine})"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        yield from _of_every_engine(self.name, plan, length)

    def needed_bytes(self, plan: Plan, job: Job) -> int:
        shape = _shape(plan)
        return input_bytes(shape, job.length, WIDTHS[plan.dtype])

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        call = layer_call(_shape(plan), job.length, device=plan.device, dtype=plan.dtype)
        scan = _Scan(plan, job)
        return Prepared([("scan", lambda: scan.over(call))], scan.ran)


def _of_every_engine(case: str, plan: Plan, length: int) -> Iterator[Job]:
    for name in plan.statistics:
        for engine in plan.engines:
            yield Job(case=case, length=length, engine=engine, statistics=name)


class _Scan:
    """The scan of a job, and the name of the engine that it chose."""

    def __init__(self, plan: Plan, job: Job) -> None:
        assert job.engine is not None
        assert job.statistics is not None
        self.engine = ENGINES[job.engine]
        self.statistics = plan.statistics[job.statistics]
        self.name: str | None = None

    def over(self, call: Call) -> object:
        scan = self.engine.scan(self.statistics)
        scan.update(call)
        results = scan.finish()
        self.name = scan.engine_name
        return results

    def ran(self) -> str | None:
        return self.name


def _forward_bytes(plan: Plan, job: Job) -> int:
    shape = _shape(plan)
    width = WIDTHS[plan.dtype]
    output = shape.heads * job.length * (shape.head_dim * width + 4)
    return input_bytes(shape, job.length, width) + output


def _shape(plan: Plan) -> LayerShape:
    assert plan.layer is not None
    return plan.layer
