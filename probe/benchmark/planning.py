"""From what was asked for on the command line to a plan, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probe.benchmark.case import WIDTHS
from probe.benchmark.engines import engines_of
from probe.benchmark.result import LayerShape, ModelShape, Plan
from probe.benchmark.shapes import (
    DTYPES,
    LAYER_LENGTHS,
    LAYERS,
    MODEL_LENGTHS,
    MODEL_OF_DEVICE,
    MODELS,
    kind_of,
    model_shape,
)
from probe.benchmark.statistic_sets import statistic_sets
from probe.errors import UsageError

PARTS = ("scan", "model")
"""What `--only` may name."""


@dataclass(frozen=True)
class Asked:
    """Options as they were given; None stands for the default that suits the machine."""

    lengths: tuple[int, ...] | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    repeats: int = 5
    enough_seconds: float = 5.0
    statistics: Sequence[str] = ("core", "five")
    engines: Sequence[str] | None = None
    only: str | None = None
    model: str | None = None
    model_shape: str | None = None
    chunk_tokens: int | None = None


def plan_of(asked: Asked) -> Plan:
    """Return the plan; raises UsageError naming the option that cannot be."""
    import torch

    from probe.capture import CHUNK_TOKENS

    if asked.only is not None and asked.only not in PARTS:
        raise UsageError(f"--only: expected {' or '.join(PARTS)}, not {asked.only!r}")
    device = _device(asked.device)
    kind = kind_of(device)
    dtype = asked.dtype or DTYPES[kind]
    if dtype not in WIDTHS:
        raise UsageError(f"--dtype: expected {', '.join(WIDTHS)}, not {dtype!r}")
    return Plan(
        device=device,
        dtype=dtype,
        threads=asked.threads or torch.get_num_threads(),
        repeats=asked.repeats,
        enough_seconds=asked.enough_seconds,
        layer=None if asked.only == "model" else _layer(asked, kind),
        layer_lengths=tuple(sorted(asked.lengths or LAYER_LENGTHS[kind])),
        engines=engines_of(asked.engines, device),
        statistics=statistic_sets(asked.statistics),
        model=None if asked.only == "scan" else _model(asked, kind),
        model_lengths=tuple(sorted(asked.lengths or MODEL_LENGTHS[kind])),
        chunk_tokens=asked.chunk_tokens or CHUNK_TOKENS,
    )


def _device(asked: str | None) -> str:
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kinds = ["cpu", *(kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available())]
    kind, _, index = asked.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in kinds or not (index == "" or (index.isdecimal() and int(index) < count)):
        raise UsageError(f"--device: there is no {asked!r} here; there is {', '.join(kinds)}")
    return asked


def _layer(asked: Asked, kind: str) -> LayerShape:
    default = LAYERS[kind]
    heads = asked.heads or default.heads
    # Whoever names the heads alone gets as many key heads as go into them.
    kv_heads = asked.kv_heads or (default.kv_heads if heads % default.kv_heads == 0 else heads)
    if heads % kv_heads:
        raise UsageError(f"--kv-heads: {heads} heads do not fall into {kv_heads} groups of one size")
    return LayerShape(heads=heads, kv_heads=kv_heads, head_dim=asked.head_dim or default.head_dim)


def _model(asked: Asked, kind: str) -> ModelShape:
    if asked.model is not None and asked.model_shape is not None:
        raise UsageError("--model and --model-shape exclude each other")
    if asked.model is not None:
        return ModelShape(name=asked.model, loaded=True)
    if asked.model_shape is not None:
        return model_shape(asked.model_shape)
    return MODELS[MODEL_OF_DEVICE[kind]]
