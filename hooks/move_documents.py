"""Documents of a prompt in another order, whatever the model makes of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, get_args

from probe.errors import UsageError
from probe.hooks.attention.document_rows import documents_of
from probe.hooks.sequence.change_of_prompt import ChangeOfPrompt
from probe.hooks.sequence.document_order import reordered
from probe.sample import Sample

Order = Literal["reversed", "random", "gold_first", "gold_last"]


@dataclass(frozen=True)
class move_documents(ChangeOfPrompt):
    """Let the model read a prompt's documents in another order: `with move_documents("reversed")(model):`.

    `gold_first` and `gold_last` know which document holds the answer (the one with the span `needle`): oracles that say
    how much order could give at most, and no cure. The plain orders are this toolkit's own controls, for attention
    sorting first of all. Documents are the spans `document_0`, `document_1`, …, and keep their headings and numbers.
    Refused for samples with fewer than two documents, and by an oracle where none of them holds the needle.
    """

    order: Order
    """`reversed`; `random`, drawn for each sample; `gold_first` or `gold_last`: the document with the answer moves, the
    others keep their order (an oracle)."""
    seed: int = 0
    """Of the random order, together with the sample's name."""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"move_documents: order is {self.order!r}; expected {', '.join(get_args(Order))}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"order of documents"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        self._order(sample)

    def rewritten(self, model: Any, sample: Sample) -> Sample:
        """See `ChangeOfPrompt.rewritten`."""
        return reordered(sample, documents_of(sample, "move_documents"), self._order(sample), "move_documents")

    def _order(self, sample: Sample) -> list[int]:
        documents = documents_of(sample, "move_documents")
        order = list(range(len(documents)))
        if self.order == "reversed":
            return order[::-1]
        if self.order == "random":
            random.Random(f"{self.seed} {sample.name}").shuffle(order)
            return order
        needles = [span for span in sample.spans if span.name == "needle"]
        gold = [k for k in order for n in needles if documents[k][0] <= n.start and n.stop <= documents[k][1]]
        if len(gold) != 1:
            raise UsageError(
                f"move_documents: order {self.order!r} takes a sample of which one document holds the span needle; "
                f"{len(gold)} of {sample.name!r} do"
            )
        order.remove(gold[0])
        return [*gold, *order] if self.order == "gold_first" else [*order, *gold]
