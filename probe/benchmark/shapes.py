"""The shapes and lengths that are measured where none are asked for."""

from __future__ import annotations

from probe.benchmark.result import LayerShape, ModelShape
from probe.errors import UsageError

LAYERS = {
    "cpu": LayerShape(heads=8, kv_heads=2, head_dim=64),
    "cuda": LayerShape(heads=32, kv_heads=8, head_dim=128),
}
"""Kind of device → the layer that is measured on it by default: on a GPU that of an 8-billion-parameter Llama."""
LAYER_LENGTHS = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16_384, 32_768, 131_072)}
MODEL_LENGTHS = {"cpu": (1024, 4096), "cuda": (8192, 32_768, 131_072)}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
MODELS = {
    "small": ModelShape(
        name="small", layers=4, hidden=512, intermediate=1408, heads=8, kv_heads=2, head_dim=64, vocabulary=8192
    ),
    "1b": ModelShape(
        name="1b", layers=16, hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_dim=64, vocabulary=128_256
    ),
    "8b": ModelShape(
        name="8b", layers=32, hidden=4096, intermediate=14_336, heads=32, kv_heads=8, head_dim=128, vocabulary=128_256
    ),
}
"""Llama shapes: one for a CPU, that of Llama 3.2 1B, that of Llama 3 8B (their embeddings not tied)."""
MODEL_OF_DEVICE = {"cpu": "small", "cuda": "1b"}


def kind_of(device: str) -> str:
    """Return which of the defaults a device takes: `cuda`, or `cpu` for every other one."""
    return "cuda" if device.split(":")[0] == "cuda" else "cpu"


def model_shape(name: str) -> ModelShape:
    """Return a shape by name; raises UsageError where there is none."""
    if name not in MODELS:
        raise UsageError(f"--model-shape: there is no {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
