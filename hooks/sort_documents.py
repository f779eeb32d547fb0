"""Documents in the order of the attention that they get, the most attended last (attention sorting)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.document_rows import documents_of, last_row
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.document_order import reordered
from probe.sample import Sample

SortedEnd = Literal["last", "first"]
Per = Literal["token", "document"]


@dataclass(frozen=True)
class sort_documents(ChangeOfPrompt):
    """Let the model read documents in the order in which it looks at them: `with sort_documents(rounds=2)(model):`.

    Peysakhovich and Lerer (2023, arXiv 2310.01427, attention sorting): the prompt goes through the model, documents are
    ranked by the attention that they get from its last position, averaged over layers and heads, and put in ascending
    order, the highest last; that is repeated, and the last order is read. It takes a model that favours what stands
    last: where the beginning is favoured too, a document that stood first is carried to the end for its place.

    Known to us from the abstract, which leaves open, as fields: the number of rounds, layers and heads, and whether a
    document has the mean or the sum of its tokens' attention. Rounds end where the order no longer changes; equals keep
    their order. Attention is that of the model without any intervention on it. Documents are the spans `document_0`,
    `document_1`, …, and keep their headings and numbers; the sample's facts say the order under `document_order`, and
    under `needle_depth_before` where the gold one stood. Refused for samples with fewer than two documents.
    """

    rounds: int = 1
    """How often documents are sorted, each time as the model then sees them; this toolkit's default."""
    highest: SortedEnd = "last"
    """Where the document with the most attention goes; `last` as published, `first` for models that favour that."""
    per: Per = "token"
    """Mean attention per `token`, as Hsieh et al. 2024 have it, or its sum over the `document`."""
    layers: Sequence[int] | None = None
    """Layers over which attention is averaged, from 0; None for all."""
    heads: Sequence[tuple[int, int]] | None = None
    """Pairs of layer and query head over which attention is averaged; None for all of the layers'."""

    asks_the_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"sort_documents: rounds is at least 1, not {self.rounds}")
        for name, kinds in (("highest", SortedEnd), ("per", Per)):
            if getattr(self, name) not in get_args(kinds):
                raise UsageError(
                    f"sort_documents: {name} is {getattr(self, name)!r}; expected {', '.join(get_args(kinds))}"
                )
        try:
            layers = None if self.layers is None else tuple(sorted({int(layer) for layer in self.layers}))
            heads = None if self.heads is None else tuple(dict.fromkeys((int(i), int(j)) for i, j in self.heads))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"sort_documents: layers are whole numbers, heads pairs of layer and head: {error}"
            ) from error
        if layers is not None and heads is not None:
            raise UsageError("sort_documents: layers and heads both say what is averaged over; give one of them")
        if layers == () or heads == ():
            raise UsageError("sort_documents: layers and heads name at least one, or are None for all")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "heads", heads)

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"order of documents"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        own = transformers_model_of(model)
        shape = {layer: found.num_heads for layer, found in attention_parts(own).get("self", {}).items()}
        if not shape:
            raise UsageError(f"sort_documents: no layer of {name_of(own)} attends; a model with attention is needed")
        for layer in self.layers or ():
            if layer not in shape:
                raise UsageError(
                    f"sort_documents: {name_of(own)} has no attention in layer {layer}; its layers are {sorted(shape)}"
                )
        for layer, head in self.heads or ():
            if not 0 <= head < shape.get(layer, 0):
                raise UsageError(
                    f"sort_documents: {name_of(own)} has no head ({layer}, {head}); heads by layer: {shape}"
                )
        documents_of(sample, "sort_documents")

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        self.check(model, sample)
        places = documents_of(sample, "sort_documents")
        order = list(range(len(places)))
        read = sample
        for _ in range(self.rounds):
            now = documents_of(read, "sort_documents")
            tokens = torch.tensor([stop - start for start, stop in now])
            attention = self._averaged(last_row(transformers_model_of(model), read.tokens, now))
            score = attention * tokens if self.per == "document" else attention
            ranked = score.argsort(stable=True, descending=self.highest == "first").tolist()
            if ranked == list(range(len(ranked))):
                break
            order = [order[at] for at in ranked]
            read = reordered(sample, places, order, "sort_documents")
        return read

    def _averaged(self, found: dict[int, Tensor]) -> Tensor:
        if self.heads is not None:
            return torch.stack([found[layer][head] for layer, head in self.heads]).mean(0)
        return torch.cat([found[layer] for layer in self.layers or sorted(found)]).mean(0)
