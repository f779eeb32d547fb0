"""One sample going through an encoder-decoder: three attentions, each written as a part of the trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import UsageError
from probe.hooks.models.encoder_decoder import EncoderDecoderModel
from probe.kernels.call import Call
from probe.outcome import Outcome
from probe.reader import Reader, Reading
from probe.requested import Requested
from probe.sample import Sample, Span
from probe.storage.unit_writer import Part, PartWriter, UnitWriter


class EncoderDecoderReader(Reader):
    """Reads one sample: its tokens with the encoder, and the answer with the decoder, from the start tokens on.

    The trace itself shows the decoder's own attention, over positions of the decoder's text, its residual stream and
    its losses; the encoder's attention and the cross-attention are `trace.part("encoder")` and `trace.part("cross")`.
    Spans are stretches of what the encoder reads, so nothing of spans is computed of the decoder's own attention; what
    needs queries and keys on one axis of positions is left out of the cross-attention. A layer that is asked for is
    captured in every part that has it. Decoded tokens are few: nothing of the decoder's own is pooled.
    """

    def __init__(
        self,
        model: EncoderDecoderModel,
        sample: Sample,
        requests: Sequence[Requested],
        pool_tokens: int | None,
        writer: UnitWriter,
        spans: Sequence[Span],
        reading: Reading = Reading(),  # noqa: B008 (frozen)
    ) -> None:
        """Prepare; raises UsageError for a layer that no part of the model has."""
        layers = {part: set(found) for part, found in model.attention_parts.items()}
        for request in requests:
            if missing := set(request.layers or ()) - set().union(*layers.values()):
                raise UsageError(f"{request.statistic.name()}: no part of {model.name} has layer {min(missing)}")
        given, requests = requests, [r for r in requests if not r.statistic.needs_logit_direction]
        own = [r for r in requests if not any("span" in facts.axes for facts in r.statistic.arrays.values())]
        super().__init__(model, sample, _of_layers(own, layers["self"]), None, writer, (), reading)
        if left := [r for r in given if r.statistic.needs_logit_direction]:
            self._leave_out(left, f"{model.name} is an encoder-decoder, of which no direct path to a logit is known")
        self.fed = self.fed.new_tensor(model.start_tokens)
        attention = [r for r in requests if r.statistic.kind in ("scan", "row", "key")]
        crossing = [r for r in attention if not r.statistic.compares_positions]
        asked: Mapping[Part, list[Requested]] = {"encoder": attention, "cross": crossing}
        self.parts: dict[str, _PartReader] = {
            part: _PartReader(model, sample, wanted, pool_tokens, writer.part(part), spans, reading)
            for part, each in asked.items()
            if (wanted := _of_layers(each, layers.get(part, set())))
        }

    def play(self, num_new: int, chunk_tokens: int) -> Outcome:
        """Run the model over the sample and return what it answered; a text that was only read has no loss."""
        return dataclasses.replace(super().play(num_new, chunk_tokens), text_loss=None)

    def finish(self) -> None:
        """Write what is left, part by part."""
        super().finish()
        for part, reader in self.parts.items():
            reader.seen = len(self.sample) if part == "encoder" else self.num_queries
            reader.finish()

    def _prompt(self, chunk_tokens: int) -> tuple[Any, int]:
        assert isinstance(self.model, EncoderDecoderModel)
        with self._watched():
            state = self.model.prefill(self.sample.tokens, on_logits=self._on_logits, cache=self.reading.cache)
        return state, self.model.start_tokens[-1]

    def _watched(self) -> Any:
        if not self.parts:
            return super()._watched()
        return self.model.calls(self._on_call, self._on_residual if self.of_residual else None)

    def _on_call(self, sample: int, call: Call) -> None:
        if call.part in self.parts:
            self.parts[call.part]._on_call(sample, call)
        elif call.part == "self" and self.of_attention:
            super()._on_call(sample, call)

    def _where_not_finite(self, *sequences: list[int]) -> str:
        """Say that something is not finite; where it arises is only looked for in models of one stack."""
        bad = [head for heads in self.bad.values() for head in heads.found]
        bad += [head for each in self.parts.values() for heads in each.bad.values() for head in heads.found]
        return "NaN or infinity in the logits" + (", and in attention before them" if bad else "")


class _PartReader(Reader):
    """What watches one part; its keys stand at the sample's positions."""

    def __init__(
        self, model: EncoderDecoderModel, sample: Sample, requests: Sequence[Requested], pool_tokens: int | None,
        writer: PartWriter, spans: Sequence[Span], reading: Reading,
    ) -> None:  # fmt: skip
        super().__init__(model, sample, requests, pool_tokens, writer, spans, reading)
        self.seen = 0

    @property
    def num_queries(self) -> int:
        """Queries that were seen."""
        return self.seen

    def _check_layers(self, requests: Sequence[Requested]) -> None:
        """Nothing: what the part has was chosen."""


def _of_layers(requests: Sequence[Requested], there: set[int]) -> list[Requested]:
    """Return the requests as a stack with these layers can answer them."""
    found = []
    for each in requests:
        layers = None if each.layers is None else tuple(layer for layer in each.layers if layer in there)
        if layers is None or layers:
            found.append(dataclasses.replace(each, layers=layers))
    return found if there else []


__all__ = ["EncoderDecoderReader"]
