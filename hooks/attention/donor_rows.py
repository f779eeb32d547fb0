"""What heads put out, and where they looked, in a run of another prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.chosen_heads import ChosenHeads
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.mean_head_output import run
from probe.kernels.call import Call
from probe.kernels.scores import MASKED, Scores


@torch.no_grad()
def donor_outputs(
    model: PreTrainedModel, tokens: Sequence[int], chosen: ChosenHeads, queries: tuple[int, int]
) -> dict[int, Float[Tensor, "query head value_channel"]]:
    """Return, by layer, what the chosen heads put out at these positions of a prompt, before the output projection.

    The prompt is read whole and without a cache, on the model without any intervention.
    """
    seen = _outputs(chosen, queries)
    with attached(model, seen, alone=True):
        run(model, [tokens])
    return seen.found


@torch.no_grad()
def donor_logits(
    model: PreTrainedModel, tokens: Sequence[int], chosen: ChosenHeads, queries: tuple[int, int]
) -> dict[int, Float[Tensor, "head query key"]]:
    """Return, by layer, the chosen heads' logits at these positions of a prompt over all keys up to the last of them.

    `MASKED` where a query sees no key. Raises `NotReproducible` for a layer that is not causal.
    """
    seen = _logits(name_of(model), chosen, queries)
    with attached(model, seen, alone=True):
        run(model, [tokens])
    return seen.found


class _outputs(tap):
    def __init__(self, chosen: ChosenHeads, queries: tuple[int, int]) -> None:
        self.chosen, self.queries = chosen, queries
        self.found: dict[int, Tensor] = {}

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        if here.layer in self.chosen.by_layer:
            heads = self.chosen.by_layer[here.layer].to(output.device)
            self.found[here.layer] = output[0, slice(*self.queries)][:, heads].detach().clone()
        return output


class _logits(tap):
    wants_calls = True

    def __init__(self, name: str, chosen: ChosenHeads, queries: tuple[int, int]) -> None:
        self.name, self.chosen, self.queries = name, chosen, queries
        self.found: dict[int, Tensor] = {}

    def call(self, sample: int, call: Call) -> None:
        if call.layer not in self.chosen.by_layer:
            return
        if not call.causal:
            raise NotReproducible(f"{self.name}, layer {call.layer}: it is not causal, and has no row to be patched")
        first, stop = max(self.queries[0], call.query_start), min(self.queries[1], call.query_start + call.num_queries)
        if first >= stop:
            return
        heads = self.chosen.by_layer[call.layer].to(call.query.device)
        if call.layer not in self.found:
            num = self.queries[1] - self.queries[0]
            self.found[call.layer] = call.query.new_full(
                (int(heads.sum()), num, self.queries[1]), MASKED, dtype=torch.float32
            )
        scores, keys = Scores(call), min(call.key_start + call.num_keys, self.queries[1])
        query, key = scores.query(first, stop), scores.key(call.key_start, keys)
        out = torch.empty(len(query), query.shape[1], key.shape[1], device=query.device)
        rows = slice(first - self.queries[0], stop - self.queries[0])
        made = scores.logits(query, key, first, call.key_start, out)
        self.found[call.layer][:, rows, call.key_start : keys] = made[heads]
