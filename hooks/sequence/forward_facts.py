"""What one forward pass says about its tokens: which are padding, where they stand, and in which phase they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from probe.errors import NotReproducible
from probe.hooks.attention.documents import packed_sequences
from probe.hooks.attention.handed_out import handed_out

Phase = Literal["prefill", "decode"]
Part = Literal["self", "encoder", "cross"]


@dataclass(eq=False)
class forward_facts:
    """One forward of a model on a batch of `num_queries` new tokens after `num_past` cached ones.

    Phase of a query: what the caller declared; else, in the first forward on an empty cache, the last token of each
    sample decodes (its logits produce the first answer token) and the others are prefill; in a forward on a cache that
    holds tokens all queries decode. A bidirectional layer has no decoding: all its queries are prefill.
    """

    model_name: str
    """Named in every refusal."""
    num_samples: int
    """Samples in the batch."""
    num_queries: int
    """Tokens that this forward adds, padding included."""
    num_past: int = 0
    """Tokens that the cache had seen before this forward, padding and dropped ones included."""
    kept: Bool[Tensor, "batch key"] | None = None
    """The 2-D attention mask over cached and new tokens, True where a token is real; None where all are."""
    phase: Phase | None = None
    """The phase that the caller declared, if any."""
    tokens: Int[Tensor, "key"] | None = None
    """Token ids of the whole sequence of a batch of one, where known."""
    handed: handed_out | None = None
    """What readers have been given of a batch of one, where part of it may be put through again."""
    packed: Int[Tensor, "batch query"] | None = None
    """Which packed sequence each token is in, where the positions that were given are not those of one. Whether
    attention keeps to them, its mask says."""
    part: Part = "self"
    """Whose attention it is, as in `Call`."""
    over: forward_facts | None = None
    """The encoder's tokens, on which the keys of cross-attention stand; None where queries and keys are of one text."""
    cross: forward_facts | None = None
    """The same forward as the decoder's cross-attention sees it, where there is an encoder."""
    ranges: list[tuple[int, int]] = field(init=False)
    """For each sample the half-open range of real tokens, in the coordinates of the padded sequence."""
    layers_called: set[int] = field(default_factory=set)
    """Layers whose attention was reached in this forward."""
    checked_masks: dict[tuple[Any, ...], tuple[Tensor, Tensor | None, int]] = field(default_factory=dict)
    """Masks found to be as understood, with the documents that they keep apart, and by how much a window is wider than
    was said. The tensor is kept alive, so that its id stays its own."""

    def __post_init__(self) -> None:
        total = self.num_past + self.num_queries
        if self.kept is None:
            self.ranges = [(0, total)] * self.num_samples
            return
        if self.kept.shape[1] != total:
            raise NotReproducible(
                f"{self.model_name}: the attention mask covers {self.kept.shape[1]} tokens, "
                f"the cache and this forward together have {total}"
            )
        self.ranges = [_contiguous(row, self.model_name, index) for index, row in enumerate(self.kept.cpu())]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        model_name: str,
        phase: Phase | None = None,
        tokens: Tensor | None = None,
        handed: handed_out | None = None,
    ) -> forward_facts:
        """Read the facts from the arguments of `module.forward`; `NotReproducible` for a mask that is not 2-D."""
        # By the class: a module's own forward may have been wrapped (nnsight's says `self` too).
        given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        inputs = given.get("input_ids")
        if inputs is None:
            inputs = given.get("inputs_embeds")
        if inputs is None:
            raise NotReproducible(f"{model_name}: a forward without input_ids or inputs_embeds is not understood")
        num_past = _tokens_seen(given.get("past_key_values"))
        if num_past == 0 and tokens is not None and _recurs_on(given):
            num_past = len(tokens) - inputs.shape[1]
        kept = _kept(given.get("attention_mask"), num_past + inputs.shape[1], model_name)
        if tokens is None and num_past == 0 and inputs.shape[0] == 1 and inputs.ndim == 2:
            tokens = inputs[0].detach()
        packed = packed_sequences(given.get("position_ids")) if num_past == 0 else None
        return cls(model_name, inputs.shape[0], inputs.shape[1], num_past, kept, phase, tokens, handed, packed)

    @property
    def num_keys(self) -> int:
        """Tokens that there are keys of, padding and dropped ones included."""
        return self.num_past + self.num_queries if self.over is None else self.over.num_queries

    def keys_of(self, sample: int) -> tuple[int, int]:
        """Half-open range of the keys that are real tokens of `sample`."""
        return self.ranges[sample] if self.over is None else self.over.ranges[sample]

    def queries_of(self, sample: int) -> tuple[int, int]:
        """Half-open range of the rows of this forward that are real tokens of `sample`."""
        start, stop = self.ranges[sample]
        first = min(max(start - self.num_past, 0), self.num_queries)
        return first, max(min(stop - self.num_past, self.num_queries), first)

    def valid_rows(self) -> Bool[Tensor, "batch query"]:
        """True at the rows that are real tokens."""
        rows = torch.zeros(self.num_samples, self.num_queries, dtype=torch.bool)
        for sample in range(self.num_samples):
            first, last = self.queries_of(sample)
            rows[sample, first:last] = True
        return rows

    def query_positions(self) -> Int[Tensor, "batch query"]:
        """Where each row stands in its own sample; below 0 where it is padding before it."""
        start = torch.tensor([start for start, _ in self.ranges])
        return self.num_past + torch.arange(self.num_queries) - start[:, None]

    def decode_rows(self, causal: bool = True) -> Bool[Tensor, "batch query"]:
        """True at the real rows whose phase is `decode`."""
        if (not causal and self.part != "cross") or self.phase == "prefill":
            return torch.zeros(self.num_samples, self.num_queries, dtype=torch.bool)
        rows = self.valid_rows()
        if self.phase is None and self.num_past == 0:
            for sample in range(self.num_samples):
                rows[sample, : max(self.queries_of(sample)[1] - 1, 0)] = False
        return rows


def _kept(mask: Any, num_tokens: int, model_name: str) -> Bool[Tensor, "batch key"] | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise NotReproducible(f"{model_name}: a custom attention mask ({shape}) is not understood; pass a 2-D one")
    kept = mask.detach() != 0
    return None if kept.shape[1] == num_tokens and bool(kept.all()) else kept


def _contiguous(row: Bool[Tensor, "key"], model_name: str, sample: int) -> tuple[int, int]:
    kept = torch.nonzero(row).flatten()
    if len(kept) == 0:
        raise NotReproducible(f"{model_name}: sample {sample} of the batch is padding alone")
    start, stop = int(kept[0]), int(kept[-1]) + 1
    if stop - start != len(kept):
        raise NotReproducible(
            f"{model_name}: the attention mask of sample {sample} has holes: {len(kept)} tokens are kept "
            f"between positions {start} and {stop - 1}"
        )
    return start, stop


def _recurs_on(given: Mapping[str, Any]) -> bool:
    """Whether the forward goes on from recurrent states, which do not count their tokens."""
    if given.get("state") is not None:
        return True
    caches = [given.get(name) for name in ("past_key_values", "cache_params")]
    # xLSTM and MiniMax make their caches themselves, in their first forward.
    if any(hasattr(cache, name) for cache in caches for name in ("rnn_state", "linear_cache")):
        return True
    layers = [layer for cache in caches for layer in getattr(cache, "layers", None) or []]
    return any(any(getattr(layer, "has_previous_state", {}).values()) for layer in layers)


def _tokens_seen(cache: Any) -> int:
    cache = getattr(cache, "self_attention_cache", cache)
    # All layers have seen the same tokens, though sliding ones dropped some and shared ones store none.
    layers = getattr(cache, "layers", None) or []
    return max((int(layer.get_seq_length()) for layer in layers if hasattr(layer, "get_seq_length")), default=0)
