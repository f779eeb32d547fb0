"""Take attention heads away, in the three forms that papers use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.chosen_heads import ChosenHeads, HeadPhase, as_heads, as_queries, check_choice
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import layers_with_bias
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.mean_head_output import mean_head_output
from probe.hooks.sequence.forward_facts import Part
from probe.hooks.sequence.token_ids import token_ids

Form = Literal["zero", "mean", "uniform"]


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
    phase: HeadPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""
    reference: Sequence[Sequence[int] | str] | None = None
    """The prompts that `mean` averages over, as token ids or as text (with the special tokens that the tokenizer adds),
    every position counting alike, on the model without any intervention; computed on entering."""
    part: Part = "self"
    """Whose heads, where there is an encoder and a decoder: the decoder's own, those of the `encoder`, or those with
    which the decoder looks over the encoder (`cross`). The reference prompts of `mean` are texts that an encoder
    reads: a decoder's heads have no mean over them."""
    queries: tuple[int, int] | None = None
    """Half-open range of the query positions at which they are removed, None for all; within the phase."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads("ablate_heads", self.heads))
        object.__setattr__(self, "queries", as_queries("ablate_heads", self.queries))
        for name, kinds in (("form", Form), ("phase", HeadPhase), ("part", Part)):
            check_choice("ablate_heads", name, getattr(self, name), kinds)
        if self.reference is not None:
            given = (text if isinstance(text, str) else tuple(map(int, text)) for text in self.reference)
            object.__setattr__(self, "reference", tuple(given))
        if self.form == "mean" and not any(self.reference or ()):
            raise UsageError("ablate_heads: form 'mean' needs reference prompts to average over")

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the heads of `model` are ablated."""
        reference = [token_ids(model, each, "ablate_heads", "reference") for each in self.reference or ()]
        return self._applied(transformers_model_of(model), reference)

    @contextmanager
    def _applied(self, model: PreTrainedModel, reference: Sequence[Sequence[int]]) -> Iterator[None]:
        chosen = ChosenHeads.of(
            model, "ablate_heads", self.heads, phase=self.phase, queries=self.queries, part=self.part
        )
        wanted = set(chosen.by_layer)
        means = mean_head_output(model, reference, self.part) if self.form == "mean" and wanted else {}
        if self.form == "uniform" and (biased := wanted & layers_with_bias(model, self.part)):
            raise UsageError(
                f"ablate_heads: {name_of(model)}, layer {min(biased)} adds a bias by distance to its logits, so a "
                "query of 0 does not average uniformly; use form 'zero' or 'mean'"
            )
        with attached(model, _ablation(self.form, self.part, chosen, means)):
            yield


class _ablation(tap):
    def __init__(
        self,
        form: Form,
        part: Part,
        chosen: ChosenHeads,
        means: Mapping[int, Float[Tensor, "head value_channel"]],
    ) -> None:
        self.form, self.part, self.chosen, self.means = form, part, chosen, means

    def change_query(self, here: site, query: Float[Tensor, "batch head query channel"]) -> Tensor:
        if self.form != "uniform" or here.layer not in self.chosen.by_layer:
            return query
        return query.masked_fill(self.chosen.where(here, query.device).transpose(1, 2), 0)

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        if self.form == "uniform" or here.layer not in self.chosen.by_layer:
            return output
        where = self.chosen.where(here, output.device)
        if self.form == "zero":
            return output.masked_fill(where, 0)
        return torch.where(where, self.means[here.layer].to(output), output)
