"""Which of transformers' classes a checkpoint is to be opened with."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)


def checkpoint_class(settings: dict[str, Any]) -> Any:
    """The class whose `from_pretrained` opens a checkpoint: one that answers, where its architecture has one.

    An encoder-decoder opens as such. Of an encoder (BERT's masked models, say) the very class that the checkpoint names
    is taken, since any other would lack weights or run as what it was not trained for; everything else opens as a
    causal language model. `settings` are those of `from_pretrained`.
    """
    config = AutoConfig.from_pretrained(**settings)
    if getattr(config, "is_encoder_decoder", False) and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return AutoModelForSeq2SeqLM
    named = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    if not (isinstance(named, type) and issubclass(named, PreTrainedModel) and _reads_text_alone(named)):
        return AutoModelForCausalLM
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    answers = causal and named is MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return named if not answers and (encodes or not causal) else AutoModelForCausalLM


def _reads_text_alone(model: type[PreTrainedModel]) -> bool:
    takes = inspect.signature(model.forward).parameters
    return "input_ids" in takes and not {"pixel_values", "input_features", "input_values"} & set(takes)
