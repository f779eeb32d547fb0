"""Which reader goes with which kind of model."""

from __future__ import annotations

from probe.encoder_decoder_reader import EncoderDecoderReader
from probe.encoder_reader import EncoderReader
from probe.hooks.models.encoder import EncoderModel
from probe.hooks.models.encoder_decoder import EncoderDecoderModel
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.models.over_ranks import OverRanks
from probe.ranked_reader import RankedReader
from probe.reader import Reader


def reader_class(model: HuggingFaceModel) -> type[Reader]:
    """Return what reads a sample with this model."""
    if isinstance(model, EncoderDecoderModel):
        return EncoderDecoderReader
    if isinstance(model, OverRanks):
        return RankedReader
    return EncoderReader if isinstance(model, EncoderModel) else Reader
