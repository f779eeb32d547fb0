"""The attention of a TransformerLens bridge, which is written out in the open, computed without its pattern."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from probe.hooks.attention.by_rows import attention_by_rows
from probe.hooks.attention.chunk import attend
from probe.hooks.attention.fused import fused_attention
from probe.hooks.attention.interface import masks_as_sdpa, own_attention
from probe.hooks.attention.pending_scores import of_rows, pending_scores, unknown_step
from probe.hooks.attention.tap import site

if TYPE_CHECKING:
    from probe.hooks.attention.switch import attention_switch

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def bridge_components(decoder: nn.Module) -> list[Any]:
    """The attention components of a bridge that compute attention themselves; none where there is no bridge."""
    # Without the library there is no such object, and importing it takes a second.
    if "transformer_lens" not in sys.modules:
        return []
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    found: dict[int, Any] = {id(each): each for each in decoder.modules() if isinstance(each, AttentionBridge)}
    # One without a forward of its own calls the attention that it wraps, which is watched there.
    return [each for each in found.values() if type(each).forward is not AttentionBridge.forward]


def layer_of(component: Any) -> int:
    """The layer that a component is of, as the bridge's hook points count them."""
    return int(str(component.hook_pattern.name).split(".")[1])


@contextmanager
def bridge_attention(decoder: nn.Module, switch: attention_switch) -> Iterator[None]:
    """Within the block the attention of a bridge's components goes through `switch`, and makes no pattern.

    A component's forward runs as ever: its projections, rotation, cache, hook points and output projection. Where it
    multiplies queries with keys it gets a stand-in (see `pending_scores`) that notes what is done to the scores, and
    where that meets the values, attention is computed as noted, in memory linear in the tokens. A component on whose
    `hook_attn_scores` or `hook_pattern` somebody has a hook makes the matrix for it.
    """
    components = bridge_components(decoder)
    with ExitStack() as stack:
        if components:
            stack.enter_context(masks_as_sdpa(switch.model, decoder))
        for component in components:
            stack.enter_context(_without_pattern(component, switch))
        yield


@contextmanager
def _without_pattern(component: Any, switch: attention_switch) -> Iterator[None]:
    attributes = vars(component)
    names = ("forward", "_apply_reconstruct_attention_mask", "_pattern")
    before = {name: attributes[name] for name in names if name in attributes}
    forward, own_mask = component.forward, component._apply_reconstruct_attention_mask

    def mask(attn_scores: Any, attention_mask: Tensor | None, seq_len: int, q_seq_len: int | None = None) -> Any:
        if not isinstance(attn_scores, pending_scores):
            return own_mask(attn_scores, attention_mask, seq_len, q_seq_len)
        if attention_mask is None:
            return dataclasses.replace(attn_scores, ahead_hidden=_is_causal(component))
        if attention_mask.ndim != 4:
            raise switch.not_reproducible(component, f"its mask has {attention_mask.ndim} axes, not 4")
        return attn_scores + attention_mask[:, :, -attn_scores.shape[2] :, :seq_len]

    def watched(*args: Any, **kwargs: Any) -> Any:
        if switch.rests:
            return forward(*args, **kwargs)
        caught = bridge_products(component, switch)
        try:
            with _readers(component, caught), caught:
                result = forward(*args, **kwargs)
        except unknown_step as error:
            raise switch.not_reproducible(component, f"its TransformerLens bridge: {error}") from None
        if caught.num_done != 2:
            raise switch.not_reproducible(component, f"{type(component).__name__} did not attend")
        if isinstance(attributes.get("_pattern"), pending_scores):
            attributes["_pattern"] = before.get("_pattern")
        if isinstance(result, tuple):
            return tuple(None if isinstance(each, pending_scores) else each for each in result)
        return result

    # Past the component's own way of setting, which would set them on what it wraps.
    attributes["forward"], attributes["_apply_reconstruct_attention_mask"] = watched, mask
    try:
        yield
    finally:
        for name in names[:2]:
            attributes.pop(name, None)
        attributes.update(before)


@contextmanager
def _readers(component: Any, caught: bridge_products) -> Iterator[None]:
    """Within the block those who have a hook on the scores or on the pattern are given the matrix."""
    points = [component.hook_attn_scores, component.hook_pattern]
    points = [point for point in points if point._forward_hooks and "forward" not in vars(point)]
    for point in points:
        vars(point)["forward"] = caught.made
    try:
        yield
    finally:
        for point in points:
            del vars(point)["forward"]


class bridge_products(TorchFunctionMode):
    """Catches, in one call of a component, the product of queries and keys and that of pattern and values."""

    def __init__(self, component: Any, switch: attention_switch) -> None:
        super().__init__()
        self.component, self.switch = component, switch
        self.num_done = 0
        self.here: site | None = None
        self.noted: pending_scores | None = None
        self.matrix: Tensor | None = None
        self.groups = 1

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pending = any(issubclass(each, pending_scores | of_rows) for each in types)
        if function in _PRODUCTS and not kwargs and len(args) == 2 and args[0].ndim == args[1].ndim == 4:
            self.num_done += 1
            if self.num_done > 2:
                self._refuse("more than the two products of attention")
            return self._scores(*args) if self.num_done == 1 else self._mixed(*args)
        if pending:
            return pending_scores.__torch_function__(function, types, args, kwargs)
        if function is torch.cat and self.matrix is not None and args[0][0] is self.matrix and self.noted is not None:
            self.noted = self.noted.with_sink(args[0][1])
        return function(*args, **kwargs)

    def made(self, scores: Any) -> Any:
        """Make the matrix that is noted, for a hook that reads it."""
        if not isinstance(scores, pending_scores):
            return scores
        self.noted = scores
        with torch._C.DisableTorchFunction():
            self.matrix = scores.made()
        return self.matrix

    def _scores(self, query: Tensor, right: Tensor) -> pending_scores:
        key = right.transpose(-2, -1)
        self.groups = _num_repeats(self.component, key)
        self.here, query = self.switch.begin(
            self.component, query, key[:, :: self.groups], value_dim=key.shape[-1], causal=self._causal()
        )
        return pending_scores(query, key, query.dtype)

    def _mixed(self, pattern: Any, value: Tensor) -> Tensor:
        noted = pattern if isinstance(pattern, pending_scores) else self.noted
        if self.here is None or noted is None:
            self._refuse("a product that does not follow from queries and keys")
        here = dataclasses.replace(self.here, value_dim=value.shape[-1])
        query, key, once = noted.query, noted.key[:, :: self.groups], value[:, :: self.groups]
        mask = noted.mask()
        options = {
            "scaling": noted.scale * noted.softcap if noted.capped else noted.scale,
            "is_causal": self._causal(),
            "sliding_window": _window(self.component, mask),
            "softcap": noted.softcap if noted.capped else None,
            "s_aux": None if noted.sink is None else noted.sink[0, :, 0, 0],
        }
        fused: fused_attention | None = None
        with torch._C.DisableTorchFunction():
            if isinstance(pattern, pending_scores):
                special = noted.capped or noted.sink is not None
                own = own_attention(attention_by_rows if special else sdpa_attention_forward, self.switch.model.config)
                # What the function asks its module for.
                module: Any = SimpleNamespace(num_key_value_groups=self.groups, is_causal=self._causal())
                output, _, mask, fused = attend(
                    own, module, query, key, once, mask, options, causal=self._causal(), observed=self.switch.observed()
                )
            else:
                output = torch.matmul(pattern, value).transpose(1, 2)
            output = self.switch.finish(here, query, key, once, mask, output, options, fused)
        return output.transpose(1, 2)

    def _causal(self) -> bool:
        return _is_causal(self.component)

    def _refuse(self, what: str) -> NoReturn:
        raise self.switch.not_reproducible(self.component, f"its TransformerLens bridge: {what}")


def _num_repeats(component: Any, key: Tensor) -> int:
    """How often each key-value head stands in `key`, one beside the other."""
    groups = getattr(component, "num_key_value_groups", None)
    if groups is None:
        heads = getattr(component.config, "n_key_value_heads", None) or key.shape[1]
        groups = key.shape[1] // int(heads)
    groups = int(groups)
    if groups > 1 and (
        key.shape[1] % groups or not all(torch.equal(key[:, 0::groups], key[:, i::groups]) for i in range(1, groups))
    ):
        raise unknown_step(f"its keys are not those of groups of {groups} heads")
    return groups


def _window(component: Any, mask: Tensor | None) -> int | None:
    """The layer's window, where its mask has one: a model may have it in full layers' configuration too."""
    window = getattr(component, "sliding_window", None)
    if window is None:
        window = getattr(getattr(component.original_component, "config", None), "sliding_window", None)
    if mask is None or not isinstance(window, int):
        return None
    # The last row of the longest sample is no padding.
    last = mask[:, :, -1]
    seen = last if last.dtype == torch.bool else last == 0
    return window if int(seen.sum(dim=-1).amax()) <= window else None


def _is_causal(component: Any) -> bool:
    return bool(component.is_causal) and not component.is_cross_attention
