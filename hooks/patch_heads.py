"""Put into heads what they did in another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.chosen_heads import ChosenHeads, HeadPhase, as_heads, as_queries, check_choice
from probe.hooks.attention.donor_rows import donor_logits, donor_outputs
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.token_ids import token_ids
from probe.kernels.call import Call
from probe.kernels.score_change import Place, ScoreChange
from probe.sample import Sample

What = Literal["output", "pattern"]
MOST_ROWS = 64
"""Rows of a pattern that may be patched: each is as long as the prompt."""


@dataclass(frozen=True)
class patch_heads(Intervention):
    """Heads do at some positions what they did there in a run of another prompt: `patch_heads([(2, 5)], other)(model)`.

    Activation patching of single heads (Wang et al. 2022, arXiv 2211.00593, path patching's coarser form; Heimersheim
    and Nanda 2024, arXiv 2404.15255, name the choices). The other prompt is read when the block is entered, whole and
    on the model without any intervention; position i takes what position i did there, so the two prompts must be
    aligned by the caller. Of that run the chosen heads' rows alone are kept: memory grows with the rows.

    Raises `UsageError` for heads that the model does not have, and for positions that the other prompt has not.
    """

    heads: Sequence[tuple[int, int]]
    """Pairs of layer and query head, from 0; a layer is named as the model counts its layers."""
    from_prompt: Sequence[int] | str
    """The other prompt, as token ids or as text (with the special tokens that the tokenizer adds)."""
    what: What = "output"
    """`output`: what the head put out, before the output projection. `pattern`: where it looked, its row of logits and
    so of probabilities, over this run's own values; at most 64 rows, each as long as the prompt."""
    queries: tuple[int, int] | None = None
    """Half-open range of the positions that are patched; None for all that the other prompt has. Later positions, those
    of a longer prompt or of the answer, are left as they are."""
    phase: HeadPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads("patch_heads", self.heads))
        object.__setattr__(self, "queries", as_queries("patch_heads", self.queries))
        check_choice("patch_heads", "what", self.what, What)
        check_choice("patch_heads", "phase", self.phase, HeadPhase)
        if not isinstance(self.from_prompt, str):
            object.__setattr__(self, "from_prompt", tuple(map(int, self.from_prompt)))
        if not self.from_prompt:
            raise UsageError("patch_heads: from_prompt is empty")

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`: some position that is read must be patched."""
        first, _ = self._queries(token_ids(model, self.from_prompt, "patch_heads", "from_prompt"))
        last = len(sample) + sample.num_new_tokens - 2
        if first > last:
            raise UsageError(
                f"patch_heads: queries begin at position {first}, and {sample.name!r} ends with {last}: nothing would "
                "be patched"
            )

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the heads of `model` are patched."""
        tokens = token_ids(model, self.from_prompt, "patch_heads", "from_prompt")
        return self._applied(transformers_model_of(model), tokens, self._queries(tokens))

    def _queries(self, tokens: Sequence[int]) -> tuple[int, int]:
        first, stop = self.queries or (0, len(tokens))
        if stop > len(tokens):
            raise UsageError(
                f"patch_heads: queries reach position {stop - 1}, and from_prompt has {len(tokens)} tokens"
            )
        if self.what == "pattern" and stop - first > MOST_ROWS:
            raise UsageError(
                f"patch_heads: queries are {stop - first} rows of a pattern, each as long as the prompt; at most "
                f"{MOST_ROWS} are patched"
            )
        return first, stop

    @contextmanager
    def _applied(self, model: PreTrainedModel, tokens: Sequence[int], queries: tuple[int, int]) -> Iterator[None]:
        chosen = ChosenHeads.of(model, "patch_heads", self.heads, phase=self.phase, queries=queries)
        what: tap
        if self.what == "output":
            what = _outputs(chosen, queries[0], donor_outputs(model, tokens, chosen, queries))
        else:
            what = _patterns(chosen, self.phase, queries, donor_logits(model, tokens, chosen, queries))
        with attached(model, what):
            yield


class _outputs(tap):
    def __init__(
        self, chosen: ChosenHeads, first: int, rows: Mapping[int, Float[Tensor, "query head value_channel"]]
    ) -> None:
        self.chosen, self.first, self.rows = chosen, first, rows

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        if here.layer not in self.chosen.by_layer:
            return output
        heads = self.chosen.by_layer[here.layer].nonzero().flatten().to(output.device)
        patched = self.chosen.where(here, output.device)[..., 0]
        rows = self.rows[here.layer].to(output)
        # Where nothing is patched any row of theirs serves.
        at = (here.forward.query_positions() - self.first).clamp(0, len(rows) - 1).to(output.device)
        output = output.clone()
        output[:, :, heads] = torch.where(patched[:, :, heads, None], rows[at], output[:, :, heads])
        return output


class _patterns(tap):
    changes_calls = True

    def __init__(
        self,
        chosen: ChosenHeads,
        phase: HeadPhase,
        queries: tuple[int, int],
        rows: Mapping[int, Float[Tensor, "head query key"]],
    ) -> None:
        self.chosen, self.phase, self.queries, self.rows = chosen, phase, queries, rows

    def changes_layer(self, layer: int) -> bool:
        return layer in self.chosen.by_layer

    def change_call(self, here: site, sample: int, call: Call) -> Call:
        if here.layer not in self.chosen.by_layer or self.phase not in ("both", call.phase):
            return call
        if self.queries[1] <= call.query_start or call.query_start + call.num_queries <= self.queries[0]:
            return call
        heads = self.chosen.by_layer[here.layer].nonzero().flatten().to(call.query.device)
        instead = _instead(heads, self.queries, self.rows[here.layer].to(call.query.device))
        return dataclasses.replace(call, changes=(*call.changes, instead), log_sum_exp=None)


@dataclass(frozen=True, eq=False)
class _instead(ScoreChange):
    """Some rows have the logits of another run."""

    heads: Int[Tensor, "head"]
    queries: tuple[int, int]
    rows: Float[Tensor, "head query key"]

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        first = max(self.queries[0], place.query_start)
        stop = min(self.queries[1], place.query_start + place.num_queries)
        # Keys after the last patched query are hidden from all of them.
        key_stop = min(place.key_start + place.num_keys, self.rows.shape[2])
        if first >= stop or key_stop <= place.key_start:
            return logits
        rows = self.rows[:, first - self.queries[0] : stop - self.queries[0], place.key_start : key_stop]
        own = slice(first - place.query_start, stop - place.query_start)
        logits[self.heads, own, : key_stop - place.key_start] = rows.to(logits.dtype)
        return logits
