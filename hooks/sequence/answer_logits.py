"""What a unit of each head's output adds to a sample's right answer, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from probe.errors import NotReproducible
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.direct_path import direct_path, direct_path_of
from probe.kernels.call import Call
from probe.sample import Sample


class AnswerLogits:
    """Gives decoding calls their `logit_direction`, keeps the norms' scales of their rows, and checks both.

    The answer of a row is the right one's token, whatever the model said before; the other side is the mean over the
    sample's distractor answers that have another token there, over the vocabulary where the sample has none.
    """

    def __init__(self, model: HuggingFaceModel, sample: Sample) -> None:
        """Find the direct path; raises `NotReproducible` with the reason where there is none that is exact."""
        if model.is_remote:
            raise NotReproducible(f"{model.name} runs elsewhere: its unembedding and its norms are not at hand")
        if getattr(model.hf.config, "is_encoder_decoder", False):
            raise NotReproducible(
                f"{model.name} is an encoder-decoder: what a head adds to a logit is known of models of one stack alone"
            )
        self.path: direct_path = direct_path_of(model.hf, model.attention_layers)
        self.first = len(sample) - 1
        answer = list(sample.answer_tokens)
        others = [_others(sample, row) for row in range(len(answer))]
        self.tokens, self.others = torch.tensor(answer, dtype=torch.long), others
        self.direction, self.offset = self.path.tokens_apart(self.tokens, others)
        self._rows: list[dict[int | None, float]] = []
        self._of_layer: dict[int, Tensor] = {}
        self._scales: dict[int | None, float] = {}
        self._last: list[Tensor] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within the block forwards are watched; `row_done` says which of them were rows."""
        with self.path.watched(self._scales, self._last):
            yield

    def directed(self, call: Call) -> Call:
        """Return a decoding call with its `logit_direction`."""
        if call.phase != "decode":
            return call
        if call.layer not in self._of_layer:
            self._of_layer[call.layer] = self.path.of_heads(call.layer, self.direction, call.value)
        rows = torch.arange(call.num_queries) + call.query_start - self.first
        known = self._of_layer[call.layer]
        given = known.new_full((call.num_heads, call.num_queries, known.shape[-1]), torch.nan)
        inside = rows < known.shape[1]
        given[:, inside.to(given.device)] = known[:, rows[inside].to(known.device)]
        return dataclasses.replace(call, logit_direction=given.to(call.query.device))

    def row_done(self, logits: Tensor) -> None:
        """Keep the scales of the forward that was a row and gave these logits.

        Raises `NotReproducible` where its final norm's output and the unembedding do not make them.
        """
        row = len(self._rows)
        self._rows.append(dict(self._scales))
        if row >= len(self.tokens) or not bool(torch.isfinite(logits).all()):
            return
        other = self.others[row]
        exact = logits.to(self.direction)
        base = exact.mean() if other is None else exact[other.to(exact.device)].mean()
        wanted = float(exact[self.tokens[row]] - base)
        found = float(self.direction[row] @ self._last[0].to(self.direction) + self.offset[row].to(self.direction))
        allowed = 16 * torch.finfo(logits.dtype).eps * max(1.0, float(exact.abs().amax()))
        if abs(wanted - found) > allowed:
            raise NotReproducible(
                f"{self.path.model_name}: the answer's logit stands {wanted:.6g} over the others', its final norm's "
                f"output and its unembedding make {found:.6g}; what a head adds to it is not known"
            )

    def scale(self, layer: int) -> Tensor:
        """Return the product of the norms' scales on a layer's direct path, one number a row, in float64."""
        products = [each[None] * each.get(layer, 1.0) for each in self._rows]
        return torch.tensor(products, dtype=torch.float64)


def _others(sample: Sample, row: int) -> Tensor | None:
    if not sample.distractor_answers:
        return None
    token = sample.answer_tokens[row]
    found = [each[row] for each in sample.distractor_answers if row < len(each) and each[row] != token]
    return torch.tensor(found, dtype=torch.long)


__all__ = ["AnswerLogits"]
