"""Which class of ours wraps a transformers model."""

from __future__ import annotations

from transformers import PreTrainedModel

from probe.hooks.models.encoder import EncoderModel, reads_both_ways
from probe.hooks.models.encoder_decoder import EncoderDecoderModel
from probe.hooks.models.huggingface import HuggingFaceModel


def model_class(hf: PreTrainedModel) -> type[HuggingFaceModel]:
    """Return it: by the configuration for an encoder-decoder, by how its layers attend for an encoder."""
    if getattr(hf.config, "is_encoder_decoder", False):
        return EncoderDecoderModel
    return EncoderModel if reads_both_ways(hf) else HuggingFaceModel
