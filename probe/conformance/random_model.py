"""A random model of each architecture that is tried."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import PreTrainedModel

from probe.conformance.tiny_config import USUAL, Sizes, tiny_config
from probe.errors import UsageError
from probe.strict_yaml import parse

ARCHITECTURES: Final = Path(__file__).with_name("architectures.yaml")
"""What is tried."""
_SIZES = [field.name for field in dataclasses.fields(Sizes)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tiny model of one architecture is made."""

    name: str
    """What the table calls it: a model type of transformers, or a variant of one."""
    model_type: str
    """Its model type."""
    names: str = ""
    """The models that people know it by."""
    head: str = "CausalLM"
    """Which of transformers' auto classes makes it: CausalLM, Seq2SeqLM, MaskedLM."""
    sizes: Sizes = USUAL
    """Heads, widths, layers."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its configuration that are set as they are."""
    backends: tuple[str, ...] = ("huggingface",)
    """What it is tried through."""


@cache
def recipes() -> dict[str, Recipe]:
    """Return what is tried, by name."""
    tried = parse(ARCHITECTURES.read_bytes(), ARCHITECTURES.name).value
    return {name: _recipe(name, dict(entry)) for name, entry in tried.items()}


def recipe(name: str) -> Recipe:
    """Return one by name; raises UsageError where there is none."""
    if name not in recipes():
        raise UsageError(f"no architecture {name!r} is tried; there are {', '.join(recipes())}")
    return recipes()[name]


def random_model(made: Recipe, *, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Return the model in float32, with the attention that transformers would choose, its weights drawn from a seed.

    Biases, norms, learned sinks and what begins at 0 are drawn too: at 0 and 1 an error in them would not show.
    """
    config = tiny_config(made.model_type, made.sizes, made.fields)
    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    model: PreTrainedModel = getattr(transformers, f"AutoModelFor{made.head}").from_config(config, **options)
    generator = torch.Generator().manual_seed(seed + zlib.crc32(made.name.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sink" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
            elif name.endswith("bias") or not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            elif "norm" in name and weight.ndim == 1:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
    return model.float().eval()


def _recipe(name: str, entry: dict[str, Any]) -> Recipe:
    sizes = Sizes(**{size: entry.pop(size) for size in _SIZES if size in entry})
    backends = ("huggingface", *entry.pop("also_through", ()))
    return Recipe(name, entry.pop("variant_of", name), sizes=sizes, backends=backends, **entry)
