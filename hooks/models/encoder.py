"""A model that reads a text in both directions and answers nothing: BERT, ModernBERT and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.models.huggingface import HuggingFaceModel


class EncoderModel(HuggingFaceModel):
    """A transformers model each of whose layers attends in both directions, so that it predicts no next token.

    `calls` hands out its attention and `read` puts a text through; what answers (`prefill`, `step`, `mark`, `rollback`)
    is refused.
    """

    @property
    def attention_in_chunks(self) -> str:
        """How a long text attends: an encoder reads it at once."""
        return "an encoder reads a text at once"

    @property
    def max_length(self) -> int | None:
        """Longest text that the configuration permits, in tokens; RoBERTa's positions begin after that of padding."""
        length = super().max_length
        words = self.hf.get_input_embeddings()
        for module in self.hf.modules():
            is_table = isinstance(module, nn.Embedding) and module is not words and module.num_embeddings == length
            if length and is_table and module.padding_idx is not None:
                return length - int(module.padding_idx) - 1
        return length

    @torch.no_grad()
    def read(self, tokens: Sequence[int]) -> Float[Tensor, "token channel"]:
        """Put a text through at once; return the model's logits, or its last hidden states where it has no head.

        Raises `UsageError` for a text that is empty, or longer than a model with learned positions takes.
        """
        if not len(tokens):
            raise UsageError(f"{self.name}: an encoder needs a text to read")
        if self.hard_limit and len(tokens) > (self.max_length or 0):
            raise UsageError(f"{self.name} takes at most {self.max_length} tokens, not {len(tokens)}")
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self.device)
        with uncompiled(self.hf):
            output = self.hf(input_ids=ids)
        logits: Tensor = output[0]
        return logits.reshape(-1, logits.shape[-1])

    def prefill(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `NotReproducible`: there is no prompt that an answer would follow."""
        self._refuse()

    def step(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `NotReproducible`: no token follows."""
        self._refuse()

    def mark(self, *args: Any) -> NoReturn:
        """Raise `NotReproducible`: there is no sequence to go back in."""
        self._refuse()

    def rollback(self, *args: Any) -> NoReturn:
        """Raise `NotReproducible`: there is no sequence to go back in."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotReproducible(
            f"{self.name}: an encoder attends in both directions, so it predicts no next token and answers nothing"
        )


def reads_both_ways(model: PreTrainedModel) -> bool:
    """Whether every layer of the model sees keys after the query, so that it is an encoder.

    Only asked of architectures that may be one, by a forward of two tokens; False where attention cannot be reached,
    which whoever watches it is told.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    if model.can_generate() and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return False
    seen = _directions()
    try:
        attention_parts(model)
        with torch.no_grad(), attached(model, seen, alone=True):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
    except NotReproducible:
        return False
    return seen.causal == {False}


class _directions(tap):
    def __init__(self) -> None:
        self.causal: set[bool] = set()

    def change_output(self, here: site, output: Tensor) -> Tensor:
        self.causal.add(here.causal)
        return output
