"""Interventions on the prompt: a sample in, another one out, before it is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.sample_read import preparing
from probe.sample import Sample


@dataclass(frozen=True)
class ChangeOfPrompt(Intervention):
    """An intervention that rewrites what is read; what a model computes of it stays as it was.

    It acts on samples: on what `probe.trace` and casebooks read, which know their spans. Token ids that are put through
    the model by hand are nobody's sample, and are left alone.
    """

    @abstractmethod
    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """Return the sample as it shall be read, its spans where they then stand; itself where nothing changes.

        `model` is wrapped, with its tokenizer, or a bare transformers model. It may be asked, by forwards of its own
        (of `transformers_model_of(model)`), where that is the definition. Raises `UsageError` naming the field, or the
        span that the sample has not.
        """

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which samples that are read with `model` are rewritten."""
        return self._applied(model)

    @contextmanager
    def _applied(self, model: Any) -> Iterator[None]:
        with preparing(transformers_model_of(model), partial(self.rewritten, model)):
            yield
