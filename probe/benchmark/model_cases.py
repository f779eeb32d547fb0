"""What is measured of a whole model: its prefill as transformers runs it, in chunks, and traced."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from probe.benchmark.case import WIDTHS, Case, Prepared
from probe.benchmark.result import Job, ModelShape, Plan
from probe.benchmark.statistic_sets import ROWS

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel

MOST_POSITIONS = 1 << 20
"""Longest prompt of a model with random weights."""


class Prefill(Case):
    """transformers alone, the whole prompt at once, logits at its last token: what a tracing is compared with."""

    name = "prefill"
    section = "model"

    def label(self, job: Job, ran: str | None = None) -> str:
        return "prefill, transformers alone"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        yield Job(case=self.name, length=length)

    def needed_bytes(self, plan: Plan, job: Job) -> int | None:
        return _model_bytes(plan, job, job.length)

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        model = _model(plan)
        tokens = _tokens(model, job.length)
        return Prepared([("prefill", lambda: model.prefill(tokens, chunk_tokens=job.length))])


class PrefillInChunks(Case):
    """The same prompt in the chunks in which it is traced, untraced."""

    name = "prefill_in_chunks"
    section = "model"

    def label(self, job: Job, ran: str | None = None) -> str:
        return "prefill in chunks, untraced"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        yield Job(case=self.name, length=length)

    def needed_bytes(self, plan: Plan, job: Job) -> int | None:
        return _model_bytes(plan, job, min(job.length, plan.chunk_tokens))

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        model = _model(plan)
        tokens = _tokens(model, job.length)
        return Prepared([("prefill", lambda: model.prefill(tokens, chunk_tokens=plan.chunk_tokens))])


class Traced(Case):
    """`probe.trace`: the prompt in chunks with statistics of every layer, its loss, and one decoded token."""

    name = "traced"
    section = "model"

    def label(self, job: Job, ran: str | None = None) -> str:
        return "traced"

    def jobs(self, plan: Plan, length: int) -> Iterator[Job]:
        """Yield one, of the first set of statistics."""
        yield Job(case=self.name, length=length, statistics=next(iter(plan.statistics)))

    def needed_bytes(self, plan: Plan, job: Job) -> int | None:
        return _model_bytes(plan, job, min(job.length, plan.chunk_tokens))

    def prepare(self, plan: Plan, job: Job) -> Prepared:
        from probe import capture
        from probe.sample import Sample, Span

        model = _model(plan)
        third = job.length // 3
        sample = Sample(
            "benchmark", tuple(_tokens(model, job.length)), spans=(Span("middle", third, min(2 * third, third + 32)),)
        )
        assert job.statistics is not None
        names = list(plan.statistics[job.statistics])
        statistics = [*names, *ROWS, "loss"] if job.statistics == "core" else names
        options: dict[str, Any] = {"statistics": statistics, "chunk_tokens": plan.chunk_tokens}
        return Prepared([("trace", lambda: capture.trace(model, sample, **options))])


def _tokens(model: HuggingFaceModel, length: int) -> list[int]:
    import torch

    random = torch.Generator().manual_seed(0)
    tokens: list[int] = torch.randint(0, model.vocab_size, (length,), generator=random).tolist()
    return tokens


def _model_bytes(plan: Plan, job: Job, chunk: int) -> int | None:
    shape, width = plan.model, WIDTHS[plan.dtype]
    assert shape is not None
    if shape.loaded:
        return None
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * job.length
    return width * (shape.num_parameters + cache + chunk * (2 * shape.intermediate + 2 * shape.hidden))


def _model(plan: Plan) -> HuggingFaceModel:
    assert plan.model is not None
    return _built(plan.model, plan.device, plan.dtype)


@functools.lru_cache(maxsize=1)
def _built(shape: ModelShape, device: str, dtype: str) -> HuggingFaceModel:
    import torch

    from probe.hooks.models.huggingface import load

    if shape.loaded:
        return load(shape.name, device=device, dtype=dtype)
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MOST_POSITIONS,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return load(model.requires_grad_(False))


def forget_models() -> None:
    """Let go of the model that was built last."""
    _built.cache_clear()
