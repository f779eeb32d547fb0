"""A model that reads a text with an encoder and answers with a decoder: T5, BART, Marian and their kin."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from probe.errors import DeviceTooSmall, NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import Parts, attention_parts
from probe.hooks.attention.switch import declared
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.decoding import Cache
from probe.hooks.sequence.prefill import OnLogits


@dataclass(eq=False)
class encoder_decoder_state:
    """Where a sequence stands: the encoder's states of the text, and what the decoder has read and keeps."""

    encoded: Any
    """What the encoder made of the text."""
    cache: EncoderDecoderCache
    """The decoder's keys and values, and those of the text in every cross-attention layer."""
    tokens: Int[Tensor, "token"]
    """Every token that went into the decoder."""

    @property
    def num_tokens(self) -> int:
        """Tokens that went into the decoder."""
        return len(self.tokens)


class EncoderDecoderModel(HuggingFaceModel):
    """A transformers encoder-decoder. A prompt is what its encoder reads; its decoder begins with `start_tokens`.

    `calls` hands out three attentions, told apart by `Call.part`: the encoder's, the decoder's own and the decoder's
    over the encoder (cross-attention). What the class inherits speaks of the decoder: its layers, heads and residual
    stream.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: Any = None, **options: Any) -> None:
        """Wrap a model; raises `NotReproducible` where its encoder reads no tokens (Whisper's reads sound)."""
        super().__init__(hf, tokenizer, **options)
        encoder = hf.get_encoder()
        if encoder is None or "input_ids" not in inspect.signature(encoder.forward).parameters:
            raise NotReproducible(f"{name_of(hf)}: its encoder reads no tokens, so there is no text to follow")

    @cached_property
    def attention_parts(self) -> Parts:
        """The layers of each attention, by `Call.part` and index."""
        return attention_parts(self.hf)

    @property
    def num_layers(self) -> int:
        """Number of the decoder's layers."""
        return max(self.attention_layers, default=-1) + 1

    @property
    def attention_in_chunks(self) -> str:
        """How a long text attends: an encoder reads it at once."""
        return "the encoder reads a text at once; with T5's relative bias in rows of it"

    @cached_property
    def start_tokens(self) -> tuple[int, ...]:
        """What the decoder is given first: `decoder_start_token_id`, and the token that generation forces after it.

        Raises `UsageError` where the model's configuration names none.
        """
        chosen = [getattr(self.hf, "generation_config", None), self.hf.config]
        found: list[int] = []
        for names in (("decoder_start_token_id", "bos_token_id"), ("forced_bos_token_id",)):
            values = [getattr(each, name, None) for name in names for each in chosen]
            found += [int(value) for value in values if isinstance(value, int)][:1]
            if not found:
                raise UsageError(f"{self.name}: its configuration names no decoder_start_token_id")
        return tuple(found)

    @torch.no_grad()
    def prefill(  # type: ignore[override]
        self, tokens: Sequence[int], *, chunk_tokens: int = 2048, on_logits: OnLogits | None = None,
        cache: Cache = "device", whole: int | None = None,
    ) -> encoder_decoder_state:  # fmt: skip
        """Put a text through the encoder, at once, and the start tokens but the last through the decoder.

        The last of `start_tokens` is left to `step`: its logits are those of the answer's first token. `on_logits` gets
        the logits that predict the start tokens after the first. A text has no chunks here, so `chunk_tokens`
        and `whole` change nothing. Raises `DeviceTooSmall` where the encoder has no room for it, `UsageError` for an
        empty text, one that is longer than learned positions are, and `cache="offload"`.
        """
        if not len(tokens):
            raise UsageError(f"{self.name}: an encoder needs a text to read")
        if self.hard_limit and len(tokens) > (self.max_length or 0):
            raise UsageError(f"{self.name} reads at most {self.max_length} tokens, not {len(tokens)}")
        if cache != "device":
            raise UsageError(f"{self.name}: cache={cache!r} is not for encoder-decoders")
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self.device)
        try:
            with allocation_errors(), self.attention_in_parts(), uncompiled(self.hf):
                encoded = self.hf.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))
        except torch.OutOfMemoryError as error:
            raise DeviceTooSmall(
                f"{self.name}: {self.device} has no room for a text of {len(tokens)} tokens, which an encoder reads at "
                f"once: {error}"
            ) from error
        made = EncoderDecoderCache(DynamicCache(), DynamicCache())
        state = encoder_decoder_state(encoded, made, ids.new_zeros(0))
        if self.start_tokens[:-1]:
            logits = self.step(state, self.start_tokens[:-1], phase="prefill")
            if on_logits is not None:
                on_logits(0, logits)
        return state

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, state: encoder_decoder_state, tokens: Sequence[int], *, phase: Literal["prefill", "decode"] = "decode"
    ) -> Float[Tensor, "token vocabulary"]:
        """Put tokens through the decoder after those of `state`, which moves on; return the logits at each of them."""
        new = state.tokens.new_tensor(list(tokens))
        if len(new) == 0:
            raise UsageError("no tokens were given to go through the model")
        whole = torch.cat([state.tokens, new])
        read = torch.ones(state.encoded[0].shape[:2], dtype=torch.long, device=self.device)
        with uncompiled(self.hf), declared(self.hf, phase, whole):
            output = self.hf(
                encoder_outputs=state.encoded, attention_mask=read, decoder_input_ids=new[None],
                past_key_values=state.cache, use_cache=True,
            )  # fmt: skip
        if getattr(output, "logits", None) is None:
            raise NotReproducible(f"{name_of(self.hf)}: it has no head that says which token comes next")
        state.tokens = whole
        logits: Tensor = output.logits[0]
        return logits

    def mark(self, state: encoder_decoder_state) -> int:  # type: ignore[override]
        """Remember where `state` stands, to go back there."""
        return state.num_tokens

    def rollback(self, state: encoder_decoder_state, to: int) -> None:  # type: ignore[override]
        """Take the decoder back to where `mark` was taken; what the text made in the cache stays, as it is the same."""
        if state.num_tokens < to:
            raise UsageError(f"the decoder holds {state.num_tokens} tokens, fewer than the {to} of the mark")
        for layer in state.cache.self_attention_cache.layers:
            if layer.is_initialized and to == 0:
                layer.keys = layer.values = None
                layer.is_initialized = False
            elif layer.is_initialized:
                layer.keys, layer.values = (each[..., :to, :] for each in (layer.keys, layer.values))
        state.tokens = state.tokens[:to]
