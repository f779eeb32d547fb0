"""One sample going through an encoder: its attention in both directions, and no answer."""

from __future__ import annotations

import logging

from probe.hooks.models.encoder import EncoderModel
from probe.outcome import Outcome
from probe.reader import Reader

_log = logging.getLogger("probe")


class EncoderReader(Reader):
    """Reads one sample with a model that has no decoder, at once.

    Such a model predicts no next token: there is no answer, no loss, and no row, so statistics of those have no arrays.
    """

    def play(self, num_new: int, chunk_tokens: int) -> Outcome:
        """Run the model over the sample; the outcome says that nothing was answered."""
        assert isinstance(self.model, EncoderModel)
        without = sorted({r.statistic.name() for r in self.of_attention if r.statistic.kind == "row"})
        without += sorted({statistic.name() for statistic in self.tokens.statistics})
        if self.sample.answer_tokens or without:
            _log.info(
                "%s is an encoder: it answers nothing and predicts no next token%s",
                self.model.name, f", so the trace has no {', '.join(without)}" if without else "",
            )  # fmt: skip
        with self._watched():
            self._check(self.model.read(self.sample.tokens))
        failed = None if self.finite else "NaN or infinity in what the encoder puts out"
        return Outcome(response="", response_tokens=(), correct=None, failed=failed)

    @property
    def num_queries(self) -> int:
        """Queries that were seen."""
        return len(self.sample)
