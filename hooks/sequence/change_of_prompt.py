"""Interventions on the prompt: a sample in, another one out, before it is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from probe.errors import UsageError
from probe.fits import check_room
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.sample_read import preparing
from probe.sample import Sample


@dataclass(frozen=True)
class ChangeOfPrompt(Intervention):
    """An intervention that rewrites what is read; what a model computes of it stays as it was.

    It acts on samples: on what `probe.trace` and casebooks read, which know their spans. Token ids that are put through
    the model by hand are nobody's sample, and are left alone.

    What it makes longer must still fit a model's learned positions: `check` says so before a run, reading says so too.
    """

    asks_the_model: ClassVar[bool] = False
    """Whether `rewritten` goes through the model, so that what comes of it is not known before a run."""

    @abstractmethod
    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """Return the sample as it shall be read, its spans where they then stand; itself where nothing changes.

        `model` is wrapped, with its tokenizer, or a bare transformers model. It may be asked, by forwards of its own
        (of `transformers_model_of(model)`), where that is the definition. Raises `UsageError` naming the field, or the
        span that the sample has not.
        """

    def foreseen(self, model: Any, sample: Sample) -> Sample:
        """Return what a check before a run can know of `rewritten`: all of it, or the sample as it is."""
        return sample if self.asks_the_model else self.rewritten(model, sample)

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`; prompt, answer and what is to be decoded must fit the model."""
        made = self.foreseen(model, sample)
        self._check_longer(model, sample, made, made.num_new_tokens)

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which samples that are read with `model` are rewritten."""
        return self._applied(model)

    @contextmanager
    def _applied(self, model: Any) -> Iterator[None]:
        def prepare(sample: Sample) -> Sample:
            made = self.rewritten(model, sample)
            # How much is decoded may have been said otherwise than by the sample.
            self._check_longer(model, sample, made, 1)
            return made

        with preparing(transformers_model_of(model), prepare):
            yield

    def _check_longer(self, model: Any, before: Sample, made: Sample, num_new: int) -> None:
        # A bare transformers model says nothing of its room.
        if len(made) <= len(before) or not hasattr(model, "hard_limit"):
            return
        try:
            check_room(model, made, num_new)
        except UsageError as error:
            who = type(self).__name__
            raise UsageError(f"{who} makes {len(before)} tokens {len(made)}, which is too many: {error}") from None
