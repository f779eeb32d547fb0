"""Some heads keep everything, the others their first tokens and the latest ones (DuoAttention's deployment)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.chosen_heads import as_heads, check_choice
from probe.hooks.attention.eviction import FOREVER, budget_in_tokens, check_budget, evicted
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_layers, windowed_layers
from probe.hooks.attention.tap import site
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call
from probe.sample import Sample

Group = Literal["any", "all"]
BudgetOf = Literal["streaming_heads", "all_heads"]


@dataclass(frozen=True)
class full_and_streaming_heads(ChangeOfCalls):
    """Leave the cache of the named heads whole, stream all others: `full_and_streaming_heads([(2, 5)], 64)(model)`.

    A streaming head's query sees the first `num_first` tokens, the `budget − num_first` before it, and itself, of the
    prompt as of the answer; tokens stay where they stood in the text. So DuoAttention is deployed (Xiao et al. 2024,
    arXiv 2410.10819), with the heads to which a trained gate gives most; here they are whichever are named, such as
    those that `retrieval_heads` found (that is this toolkit's own). A layer with a sliding window is left alone.
    """

    heads: Sequence[tuple[int, int]] = dataclasses.field()
    """Pairs of layer and query head, from 0, whose key-value heads keep everything."""
    budget: float
    """Tokens that are kept, first and latest together; below 1 a share of the prompt's tokens, rounded down."""
    budget_of: BudgetOf = "streaming_heads"
    """Whose tokens they are: each of the `streaming_heads`', or what `all_heads` keep on average once the prompt has
    gone through, the whole ones included: the streaming heads then get what the others leave of it."""
    num_first: int = 4
    """First tokens that a streaming head keeps: StreamingLLM's four. DuoAttention's demonstration keeps 64 and 256."""
    group: Group = "any"
    """A key-value head is left whole where `any` of its query heads is named (what one needs must stay), or `all`."""

    def __post_init__(self) -> None:
        heads = as_heads("full_and_streaming_heads", self.heads)
        super().__post_init__()
        object.__setattr__(self, "heads", heads)
        check_budget("full_and_streaming_heads", self.budget)
        if self.num_first < 0:
            raise UsageError(f"full_and_streaming_heads: num_first is at least 0, not {self.num_first}")
        for name, kinds in (("group", Group), ("budget_of", BudgetOf)):
            check_choice("full_and_streaming_heads", name, getattr(self, name), kinds)
        self._room(budget_in_tokens(self.budget, FOREVER))

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"cache"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        self._streaming(self._whole(transformers_model_of(model)), len(sample.tokens))

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        whole, lengths = self._whole(model), PromptLengths()
        absolute = self.budget >= 1 and self.budget_of == "streaming_heads"

        def change(here: site, sample: int, call: Call) -> Call:
            if not call.causal or call.layer not in whole or bool(whole[call.layer].all()):
                return call
            length = 0 if absolute else lengths.of(here, sample, "full_and_streaming_heads")
            budget = self._streaming(whole, length)
            stop = call.query_start + call.num_queries
            if stop - 1 <= budget:
                return call
            leaves = torch.arange(stop, dtype=torch.int32, device=call.key.device) + budget - self.num_first + 1
            leaves[: self.num_first] = FOREVER
            until = leaves.masked_fill(whole[call.layer].to(leaves.device)[:, None], FOREVER)
            return dataclasses.replace(call, changes=(*call.changes, evicted(until)), log_sum_exp=None)

        return change

    def _chosen(self, model: PreTrainedModel) -> dict[int, Bool[Tensor, "head"] | None]:
        """The heads that are named are those on which it does not act."""
        super()._chosen(model)
        return dict.fromkeys(attention_layers(model))

    def _whole(self, model: PreTrainedModel) -> dict[int, Bool[Tensor, "kv_head"]]:
        """Return, for each layer that sees its whole past, which key-value heads keep it."""
        layers, windowed = attention_layers(model), windowed_layers(model)
        if not set(layers) - windowed:
            raise UsageError(f"full_and_streaming_heads: every layer of {name_of(model)} has a sliding window")
        found = {}
        for layer in sorted(set(layers) - windowed):
            shape = layers[layer].num_heads, layers[layer].num_kv_heads
            named = torch.tensor([(layer, head) in self.heads for head in range(shape[0])])
            by_group = named.view(shape[1], -1)
            found[layer] = by_group.any(-1) if self.group == "any" else by_group.all(-1)
        return found

    def _streaming(self, whole: dict[int, Bool[Tensor, "kv_head"]], num_tokens: int) -> int:
        """Return the tokens of each streaming head; raises `UsageError` where that is less than the first ones."""
        budget = budget_in_tokens(self.budget, num_tokens)
        if self.budget_of == "all_heads":
            heads, full = (sum(int(count(each)) for each in whole.values()) for count in (len, torch.sum))
            if full == heads:
                return num_tokens
            of_all = min(budget, num_tokens) * heads - full * num_tokens
            if of_all < 0:
                raise UsageError(
                    f"full_and_streaming_heads: budget {self.budget} of all_heads is {budget} tokens a head, and "
                    f"{full} of {heads} whole heads take more of a prompt of {num_tokens}"
                )
            budget = of_all // (heads - full)
        return self._room(budget)

    def _room(self, budget: int) -> int:
        if budget < max(1, self.num_first):
            raise UsageError(
                f"full_and_streaming_heads: budget {self.budget} leaves a streaming head {budget} tokens, no room for "
                f"num_first, {self.num_first}"
            )
        return budget
