"""Take attention heads away, in the three forms that papers use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts, layers_with_bias
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.mean_head_output import mean_head_output
from probe.hooks.sequence.forward_facts import Part

Form = Literal["zero", "mean", "uniform"]
AblatedPhase = Literal["both", "prefill", "decode"]


@dataclass(frozen=True)
class ablate_heads(Intervention):
    """Remove what the named heads contribute: `with ablate_heads([(2, 5)])(model):`.

    Each form is another question, so a report says which: a zeroed head adds nothing, a mean-ablated one adds what it
    adds on average and nothing that depends on this text, a uniform one still averages its values but without choosing
    among them. `decode` acts on the queries from the prompt's last token on: the tokens that `step` puts through; in a
    plain forward or `generate`, the last token of each sample on an empty cache, and every token on a cache that holds
    some. `prefill` acts on all others. What is removed stays the model's own in keys and values: only the heads'
    queries (uniform) or outputs (zero, mean) change.

    The masking of Wu et al. (2024, arXiv 2404.15574, the authors' code) is form `uniform` with phase `decode`.
    Raises `UsageError` naming the model's shape for heads that it does not have.
    """

    heads: Sequence[tuple[int, int]]
    """Pairs of layer and query head, from 0; a layer is named as the model counts its layers."""
    form: Form = "zero"
    """`zero`: the head's output, before the output projection, is 0. `mean`: it is the head's mean output over
    `reference`. `uniform`: its query is 0, so that it averages the values it may see uniformly."""
    phase: AblatedPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""
    reference: Sequence[Sequence[int]] | None = None
    """Token ids of the prompts that `mean` averages over, every position counting alike, on the model without any
    intervention; computed on entering."""
    part: Part = "self"
    """Whose heads, where there is an encoder and a decoder: the decoder's own, those of the `encoder`, or those with
    which the decoder looks over the encoder (`cross`). The reference prompts of `mean` are texts that an encoder
    reads: a decoder's heads have no mean over them."""

    def __post_init__(self) -> None:
        try:
            heads = tuple(dict.fromkeys((int(layer), int(head)) for layer, head in self.heads))
        except (TypeError, ValueError) as error:
            raise UsageError(f"ablate_heads: heads are pairs of layer and head, not {self.heads!r}") from error
        object.__setattr__(self, "heads", heads)
        for name, kinds in (("form", Form), ("phase", AblatedPhase), ("part", Part)):
            if getattr(self, name) not in get_args(kinds):
                raise UsageError(
                    f"ablate_heads: {name} is {getattr(self, name)!r}; expected {', '.join(get_args(kinds))}"
                )
        if self.reference is not None:
            reference = tuple(tuple(int(token) for token in tokens) for tokens in self.reference)
            object.__setattr__(self, "reference", reference)
        if self.form == "mean" and not any(self.reference or ()):
            raise UsageError("ablate_heads: form 'mean' needs reference prompts to average over")

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the heads of `model` are ablated."""
        return self._applied(transformers_model_of(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        parts = attention_parts(model)
        if self.part != "self" and self.part not in parts:
            raise UsageError(f"ablate_heads: {name_of(model)} has no part {self.part!r}; it has {', '.join(parts)}")
        shape = {layer: found.num_heads for layer, found in parts.get(self.part, {}).items()}
        for layer, head in self.heads:
            if not 0 <= head < shape.get(layer, 0):
                raise UsageError(f"ablate_heads: {name_of(model)} has no head ({layer}, {head}); {_in_words(shape)}")
        wanted = sorted({layer for layer, _ in self.heads})
        means = mean_head_output(model, self.reference or (), self.part) if self.form == "mean" and wanted else {}
        if self.form == "uniform" and (biased := set(wanted) & layers_with_bias(model, self.part)):
            raise UsageError(
                f"ablate_heads: {name_of(model)}, layer {min(biased)} adds a bias by distance to its logits, so a "
                "query of 0 does not average uniformly; use form 'zero' or 'mean'"
            )
        chosen = {
            layer: torch.tensor([(layer, head) in self.heads for head in range(shape[layer])]) for layer in wanted
        }
        with attached(model, _ablation(self.form, self.phase, self.part, chosen, means)):
            yield


class _ablation(tap):
    def __init__(
        self,
        form: Form,
        phase: AblatedPhase,
        part: Part,
        chosen: Mapping[int, Bool[Tensor, "head"]],
        means: Mapping[int, Float[Tensor, "head value_channel"]],
    ) -> None:
        self.form, self.phase, self.part, self.chosen, self.means = form, phase, part, chosen, means

    def change_query(self, here: site, query: Float[Tensor, "batch head query channel"]) -> Tensor:
        if self.form != "uniform" or here.layer not in self.chosen:
            return query
        return query.masked_fill(self._where(here, query).transpose(1, 2), 0)

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        if self.form == "uniform" or here.layer not in self.chosen:
            return output
        if self.form == "zero":
            return output.masked_fill(self._where(here, output), 0)
        return torch.where(self._where(here, output), self.means[here.layer].to(output), output)

    def _where(self, here: site, like: Tensor) -> Bool[Tensor, "batch query head 1"]:
        # A model's layers may lie on different devices.
        chosen = self.chosen[here.layer].to(like.device)
        decode = here.decode_rows().to(like.device)
        rows = {"both": torch.ones_like(decode), "prefill": ~decode, "decode": decode}[self.phase]
        return (rows[:, :, None] & chosen)[..., None]


def _in_words(shape: Mapping[int, int]) -> str:
    if len(set(shape.values())) == 1 and list(shape) == list(range(len(shape))):
        return f"it has {len(shape)} layers of {shape[0]} heads"
    return "it has " + ", ".join(f"{count} heads in layer {layer}" for layer, count in sorted(shape.items()))
