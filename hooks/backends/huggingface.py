"""Models of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedModel

from probe.hooks.loading.backend import Backend
from probe.hooks.loading.given_model import transformers_model
from probe.hooks.models.huggingface import HuggingFaceModel, load


class huggingface(Backend):
    """Hugging Face's transformers: a specimen, a folder, a hub id, or a model object."""

    package: ClassVar[str] = "transformers"

    def recognises(self, model: Any) -> bool:
        """Whether it is a transformers model, or the name of one."""
        return isinstance(model, str | PreTrainedModel)

    def load(self, model: Any, **options: Any) -> HuggingFaceModel:
        """Open or wrap it; see `probe.hooks.models.huggingface.load`."""
        return load(model, **options)

    def transformers_model(self, model: Any) -> PreTrainedModel:
        """Return it, out of peft's and torch's wrappers."""
        return transformers_model(model)
