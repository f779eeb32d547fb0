"""What stands in the place of what a page's reader has: a run that was played, weights that cannot be had here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedTokenizerFast

from probe.conformance.random_model import random_model, recipe
from tests.workloads.conftest import byte_level

TEMPLATE: Final = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template."""

MODELS: Final = {
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "qwen3_next",
    "state-spaces/mamba2-130m-hf": "mamba2",
    "google/flan-t5-small": "t5",
    "bert-base-uncased": "bert",
}
"""Names on a hub that pages use, and the architecture of the tiny random model that lies in a folder of that name."""

TEXT: Final = "The grass is green. The sky is blue. Some years ago, never mind how long, I thought I would sail about. "


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one that knows any text, in fewer tokens than a tiny model has embeddings."""
    made = byte_level(300)
    made.chat_template = TEMPLATE
    made.pad_token = "<s>"
    return made


def models(folder: Path, *names: str) -> None:
    """Save the tiny models of these names, each where `folder/NAME` is found by a process that works in `folder`."""
    words = tokenizer()
    for name in names:
        made = recipe(MODELS[name])
        model = random_model(made)
        _resize(model, len(words))
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)


def _resize(model: torch.nn.Module, size: int) -> None:
    model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
    model.generation_config = None if not model.can_generate() else model.generation_config  # type: ignore[operator]
