"""Read the prompt once to choose which of its tokens the model reads (GemFilter)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.rotation_of_whole import rotated_as_whole
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.decoding import empty_state
from probe.hooks.sequence.prefill import prefill
from probe.kernels.call import Call
from probe.kernels.keys import BLOCK_KEYS, as_float64
from probe.sample import Sample, Span


@dataclass(frozen=True)
class select_input(ChangeOfPrompt):
    """Let the model read only the tokens that one layer's last query looks for: `select_input(13, 1024)(model)`.

    The prompt goes through the model, without any intervention; in layer `layer` each key's score is Σ_heads q · k with
    the prompt's last query, after rotation, neither scaled nor normalised, averaged over `kernel` neighbours (zeros
    beyond the ends). The `budget` tokens of the highest scores are what is read, in their order, at positions that
    begin at 0. Shi et al. (2024, arXiv 2409.17422, GemFilter, the authors' code). The authors stop after that layer;
    here the whole model runs, which changes nothing but time. Ties go to the earlier token.

    Nothing is kept for what it is: the first and the last token may be left out, and the answer then follows another
    one; `keep_last` prevents it. Spans are where their tokens then stand; one that lost all is not listed. The sample's
    facts say under `select_input` how many tokens were read of how many, and what share of each span was kept.
    A prompt of at most `budget` tokens is read as it is. A layer that sees a window of tokens has no key of the others,
    and cannot choose.
    """

    layer: int
    """The layer that chooses, from 0. The authors take 13 of 32 (Llama 3.1 8B), 19 of 40 (Mistral Nemo), 19 of 32
    (Phi 3.5 mini)."""
    budget: int
    """Tokens that are read; the authors take 1,024."""
    kernel: int = 5
    """Neighbours over which scores are averaged, an odd number; the authors' 5."""
    keep_last: int = 0
    """Last tokens of the prompt that are read whatever their scores, within the budget; the authors keep none."""
    chunk_tokens: int = 2048
    """Tokens that go through the model at a time while it chooses; this toolkit's own, changes no number."""

    asks_the_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("layer", 0), ("budget", 1), ("kernel", 1), ("keep_last", 0), ("chunk_tokens", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"select_input: {name} is at least {least}, not {getattr(self, name)}")
        if self.kernel % 2 == 0:
            raise UsageError(f"select_input: kernel is an odd number, not {self.kernel}")
        if self.keep_last > self.budget:
            raise UsageError(f"select_input: keep_last ({self.keep_last}) is more than the budget of {self.budget}")

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which samples that are read with `model` lose what is not chosen."""
        self._check_model(model)
        return super().__call__(model)

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        _ = sample
        self._check_model(model)

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        if len(sample) <= self.budget:
            return sample
        scores = self._scores(transformers_model_of(model), sample.tokens)
        kept = chosen(scores, self.budget, self.kernel, self.keep_last)
        return _of(sample, kept)

    def _check_model(self, model: Any) -> None:
        if getattr(model, "is_remote", False):
            raise UsageError("select_input: the model runs elsewhere; what it reads is chosen where its weights are")
        own = transformers_model_of(model)
        layers = attention_parts(own).get("self", {})
        if self.layer not in layers:
            raise UsageError(f"select_input: layer {self.layer} of {name_of(own)} does not attend; {sorted(layers)} do")

    def _scores(self, model: PreTrainedModel, tokens: Sequence[int]) -> Float[Tensor, "token"]:
        asked = _last_row(self.layer, len(tokens))
        state = empty_state(model)
        state.prompt_tokens = len(tokens)
        with attached(model, asked, alone=True), rotated_as_whole(model, len(tokens)), torch.no_grad():
            prefill(model, state, tokens, chunk_tokens=self.chunk_tokens, on_logits=None)
        assert asked.scores is not None
        return asked.scores


def chosen(scores: Float[Tensor, "token"], budget: int, kernel: int, keep_last: int) -> list[int]:
    """Return the positions that are kept, ascending: the last ones, then those of the highest averaged scores."""
    pooled = torch.nn.functional.avg_pool1d(scores[None], kernel, stride=1, padding=kernel // 2)[0]
    order = pooled.argsort(descending=True, stable=True).tolist()
    first = len(order) - keep_last
    return sorted([at for at in order if at < first][: budget - keep_last] + list(range(first, len(order))))


class _last_row(tap):
    """Takes Σ_heads q · k of the prompt's last query in one layer."""

    wants_calls = True

    def __init__(self, layer: int, num_tokens: int) -> None:
        self.layer, self.num_tokens = layer, num_tokens
        self.scores: Tensor | None = None

    def call(self, sample: int, call: Call) -> None:
        if call.layer != self.layer or call.query_start + call.num_queries < self.num_tokens:
            return
        if call.num_keys < self.num_tokens or (call.window is not None and call.window < self.num_tokens):
            raise UsageError(
                f"select_input: layer {self.layer} sees {call.window} tokens of a prompt of {self.num_tokens}; choose "
                "one that sees all"
            )
        query = as_float64(call.query[:, -1]).unflatten(0, (call.num_kv_heads, -1)).sum(1)
        parts = []
        for first in range(0, call.num_keys, BLOCK_KEYS):
            key = as_float64(call.key[:, first : first + BLOCK_KEYS])
            parts.append(torch.einsum("hc,hkc->k", query, key).cpu())
        self.scores = torch.cat(parts)


def _of(sample: Sample, kept: Sequence[int]) -> Sample:
    """Return the sample of these of its tokens alone."""
    before = [0] * (len(sample) + 1)
    for at in kept:
        before[at + 1] = 1
    for at in range(len(sample)):
        before[at + 1] += before[at]
    spans = [Span(span.name, before[span.start], before[span.stop]) for span in sample.spans]
    share: dict[str, float] = {}
    for name in dict.fromkeys(span.name for span in sample.spans):
        tokens = sum(len(span) for span in sample.spans if span.name == name)
        left = sum(len(span) for span in spans if span.name == name)
        if tokens:
            share[name] = left / tokens
    facts = {"tokens_read": len(kept), "tokens": len(sample), "kept_of_span": share}
    return dataclasses.replace(
        sample,
        tokens=tuple(sample.tokens[at] for at in kept),
        spans=tuple(span for span in spans if len(span)),
        text="",
        facts={**sample.facts, "select_input": facts},
    )
