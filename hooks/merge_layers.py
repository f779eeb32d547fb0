"""Merge the caches of adjacent layers (MiniCache)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts, windowed_layers
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.keys import BLOCK_KEYS


@dataclass(frozen=True)
class merge_layers(ChangeOfCalls):
    """Let pairs of adjacent layers share the directions of their keys and values: `merge_layers()(model)`.

    From layer `start` on, layers l and l + 1 are a pair, l + 2 and l + 3 the next. Of each token, in each key-value
    head, the pair's two keys get one direction, on the arc between theirs (SLERP), sin((1 − t)Ω)/sin Ω · k_l/‖k_l‖ +
    sin(tΩ)/sin Ω · k_{l+1}/‖k_{l+1}‖ with Ω the angle between them, and each keeps its own length; values likewise.
    The tokens of the largest angles stay unmerged, and such as have no direction between them (opposed, or zero).
    Liu et al. (2024, arXiv 2405.14366, MiniCache), of which the abstract alone is verified: that directions are
    interpolated, lengths kept, distinct tokens left unmerged, in the middle and deep layers. `t`, `start` and `kept`
    have the values that are remembered of the paper and are not verified; that t weighs the deeper layer, that keys
    count as they are cached (rotated), that heads are merged and tokens kept each for themselves, and that `kept` is a
    share of the tokens, not a threshold on angles, are choices made here. Nothing is quantised.

    What is merged is the prompt as it stood when the forward before the first decoded token ended, since a layer's
    cache is merged with one that is computed after it. Samples that are read here are decoded from their last token on,
    which meets the merged cache; where a prompt goes through whole (`generate`), its last token reads the cache
    unmerged and gives the answer's first token. Tokens decoded later are not merged. Layers with a sliding window are
    in no pair.
    """

    t: float = 0.6
    """Where on the arc the shared direction lies, from 0 (layer l's) to 1 (layer l + 1's). Unverified."""
    start: int | None = None
    """The first pair's first layer; None for half the number of layers. Unverified."""
    kept: float = 0.05
    """Share of the tokens that stay unmerged, the number rounded down; 1 merges nothing. The paper's γ. Unverified."""

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("t", "kept"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"merge_layers: {name} lies between 0 and 1, not at {getattr(self, name)}")
        if self.start is not None and self.start < 0:
            raise UsageError(f"merge_layers: start is at least 0, not {self.start}")
        for name in ("layers", "heads", "queries"):
            if getattr(self, name) is not None:
                raise UsageError(f"merge_layers: {name} has no meaning where whole layers are merged; start says which")
        if self.phase == "prefill":
            raise UsageError("merge_layers: phase 'prefill' leaves nothing: the prompt is merged when it has ended")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"merged layers"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`; raises `UsageError` where no two adjacent layers can be merged."""
        upper_of = dict(self._pairs(model))
        lower_of = {upper: lower for lower, upper in upper_of.items()}
        prompts: dict[tuple[int, int], _pair] = {}

        def change(here: site, sample: int, call: Call) -> Call:
            lower = lower_of.get(call.layer, call.layer)
            if lower not in upper_of or not call.causal:
                return call
            if call.phase == "prefill" or here.forward.num_past == 0:
                prompts.setdefault((lower, sample), _pair()).take(call, keeps=call.layer != lower)
                return call
            pair = prompts.get((lower, sample))
            end = None if pair is None else pair.end(lower, upper_of[lower])
            if pair is None or end is None or call.query_start < end or (call.query_start > end and not pair.merged):
                raise UsageError(
                    f"merge_layers: layer {call.layer} goes on at position {call.query_start} of a prompt that it has "
                    "not seen to its end; enter it before the prompt is read"
                )
            if pair.merged is None:
                pair.merge(call, self.t, self.kept)
            assert pair.merged is not None
            key, value = pair.merged[call.layer != lower]
            return dataclasses.replace(
                call,
                key=torch.cat([key, call.key[:, end:]], 1),
                value=torch.cat([value, call.value[:, end:]], 1),
                log_sum_exp=None,
            )

        return change

    def _pairs(self, model: PreTrainedModel) -> list[tuple[int, int]]:
        parts, windowed = attention_parts(model).get("self", {}), windowed_layers(model)
        num_layers = int(model.config.get_text_config().num_hidden_layers)
        start = num_layers // 2 if self.start is None else self.start
        if start >= num_layers - 1:
            raise UsageError(
                f"merge_layers: start {start} leaves no pair of the {num_layers} layers of {name_of(model)}"
            )
        found = []
        for lower in range(start, num_layers - 1, 2):
            pair = [parts.get(lower), parts.get(lower + 1)]
            if None in pair or windowed & {lower, lower + 1}:
                continue
            shapes = {(each.num_kv_heads, each.head_dim, each.value_dim) for each in pair if each is not None}
            if len(shapes) == 1:
                found.append((lower, lower + 1))
        if not found:
            raise UsageError(
                f"merge_layers: from layer {start} on {name_of(model)} has no two adjacent layers that see their whole "
                "past with key-value heads of one shape"
            )
        return found


@dataclass
class _pair:
    """What is known of one sample's prompt in two layers."""

    seen: dict[int, int] = field(default_factory=dict)
    """How many tokens each layer has seen of it."""
    upper: Call | None = None
    """The upper layer's last call of the prompt, until the two are merged."""
    merged: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """Keys and values of the lower layer, and of the upper."""

    def take(self, call: Call, *, keeps: bool) -> None:
        self.seen[call.layer] = call.query_start + call.num_queries
        self.merged = None
        if keeps:
            self.upper = call

    def end(self, lower: int, upper: int) -> int | None:
        """The prompt's tokens where both layers have seen the same; None where not."""
        ends = {self.seen.get(lower), self.seen.get(upper)}
        return ends.pop() if len(ends) == 1 else None

    def merge(self, lower: Call, t: float, kept: float) -> None:
        assert self.upper is not None
        end = self.upper.num_keys
        key = merged(lower.key[:, :end], self.upper.key, t, kept)
        value = merged(lower.value[:, :end], self.upper.value, t, kept)
        self.merged, self.upper = ((key[0], value[0]), (key[1], value[1])), None


def merged(
    lower: Float[Tensor, "kv_head token channel"], upper: Float[Tensor, "kv_head token channel"], t: float, kept: float
) -> tuple[Float[Tensor, "kv_head token channel"], Float[Tensor, "kv_head token channel"]]:
    """Return two layers' vectors with one direction and their own lengths; those of the largest angles as they were."""
    upper = upper.to(lower.device)
    parts = [slice(at, at + BLOCK_KEYS) for at in range(0, lower.shape[1], BLOCK_KEYS)]
    angle = torch.cat([_angle(lower[:, part], upper[:, part]) for part in parts], 1)
    order = angle.argsort(dim=1, descending=True, stable=True)
    apart = torch.zeros_like(angle, dtype=torch.bool).scatter_(1, order[:, : int(lower.shape[1] * kept)], True)
    made = [_on_the_arc(lower[:, part], upper[:, part], angle[:, part], apart[:, part], t) for part in parts]
    return torch.cat([each for each, _ in made], 1), torch.cat([each for _, each in made], 1)


def _exact(vectors: Tensor) -> Tensor:
    # An angle of nearly parallel vectors needs more digits than float32 has.
    return vectors.float() if vectors.device.type == "mps" else vectors.double()


def _angle(a: Tensor, b: Tensor) -> Float[Tensor, "kv_head token"]:
    """Return the angle between vectors; π where one is zero."""
    a, b = _exact(a), _exact(b)
    norms = a.norm(dim=-1), b.norm(dim=-1)
    one, other = a / norms[0][..., None], b / norms[1][..., None]
    # 2 · atan2 keeps its digits where the arc cosine loses them.
    found = 2 * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))
    return torch.where((norms[0] > 0) & (norms[1] > 0), found, torch.pi)


def _on_the_arc(
    a: Tensor, b: Tensor, angle: Float[Tensor, "kv_head token"], apart: Bool[Tensor, "kv_head token"], t: float
) -> tuple[Tensor, Tensor]:
    exact_a, exact_b = _exact(a), _exact(b)
    lengths = exact_a.norm(dim=-1, keepdim=True), exact_b.norm(dim=-1, keepdim=True)
    sine = angle.sin()
    # At an angle of 0 the two weights are 1 − t and t; at π there is no direction between.
    near = angle < 1e-6
    apart = apart | (angle > torch.pi - 1e-6)
    safe = torch.where(near | apart, torch.ones_like(sine), sine)
    first = torch.where(near, torch.full_like(sine, 1 - t), ((1 - t) * angle).sin() / safe)
    second = torch.where(near, torch.full_like(sine, t), (t * angle).sin() / safe)
    direction = first[..., None] * exact_a / lengths[0] + second[..., None] * exact_b / lengths[1]
    return (
        torch.where(apart[..., None], a, (direction * lengths[0]).to(a.dtype)),
        torch.where(apart[..., None], b, (direction * lengths[1]).to(b.dtype)),
    )
