"""The attention of a module that computes it by itself, caught at its two products; all between them is left to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from probe.hooks.attention.interface import loaded_name
from probe.hooks.attention.module import AttentionModule, arguments_of, own_attention_facts
from probe.hooks.attention.tap import site

if TYPE_CHECKING:
    from probe.hooks.attention.switch import attention_switch

# Where among the arguments the left factor stands, the right one after it.
_PRODUCTS: dict[Any, int] = {
    torch.matmul: 0, torch.bmm: 0, torch.baddbmm: 1,
    Tensor.matmul: 0, Tensor.__matmul__: 0, Tensor.bmm: 0, Tensor.baddbmm: 1,
}  # fmt: skip


@contextmanager
def products_caught(module: nn.Module, known: AttentionModule, switch: attention_switch) -> Iterator[None]:
    """Within the block the attention of `module` goes through `switch`; its forward is the same as ever.

    Raises `NotReproducible`, in a forward, where other products are met than the two of attention.
    """
    # accelerate puts a forward of its own before the module's and keeps that under another name.
    name = "_old_forward" if "_old_forward" in vars(module) else "forward"
    before = vars(module).get(name)
    own: Callable[..., Any] = getattr(module, name)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if switch.rests:
            with loaded_name(module):
                return own(*args, **kwargs)
        caught = attention_products(module, known.facts(module, arguments_of(module, args, kwargs)), switch)
        with loaded_name(module), caught:
            result = own(*args, **kwargs)
        caught.check()
        return result

    setattr(module, name, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


class attention_products(TorchFunctionMode):
    """Catches, in one call of a module, the product of queries and keys and that of probabilities and values."""

    def __init__(self, module: nn.Module, facts: own_attention_facts, switch: attention_switch) -> None:
        super().__init__()
        self.module, self.facts, self.switch = module, facts, switch
        self.here: site | None = None
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.num_done = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if function not in _PRODUCTS:
            return function(*args, **kwargs)
        given = [*args, *(kwargs[name] for name in ("batch1", "batch2") if name in kwargs)]
        left = _PRODUCTS[function]
        if not all(isinstance(each, Tensor) and each.ndim in (3, 4) for each in given[left : left + 2]):
            return function(*args, **kwargs)
        self.num_done += 1
        if self.num_done == 1:
            given[left] = self._scores(*given[left : left + 2])
            rest = {name: value for name, value in kwargs.items() if name not in ("batch1", "batch2")}
            return function(*given, **rest)
        return self._mixed(given[left + 1], function(*args, **kwargs))

    def _scores(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the queries that the product shall be taken with."""
        self.query, key = self._by_head(left), self._by_head(right.transpose(-1, -2))
        self.key = key[:, :: self.facts.num_repeats]
        self.here, changed = self.switch.begin(
            self.module, self.query, self.key, value_dim=self.key.shape[-1], causal=self.facts.causal
        )
        if changed is self.query:
            return left
        self.query = changed
        return changed.reshape(left.shape)

    def _mixed(self, right: Tensor, result: Tensor) -> Tensor:
        """Return the heads' outputs that the module shall go on with."""
        if self.num_done > 2 or self.here is None or self.query is None or self.key is None:
            raise self.switch.not_reproducible(
                self.module, f"{type(self.module).__name__} computes more than the two products of attention"
            )
        value = self._by_head(right)[:, :: self.facts.num_repeats]
        query, key = _in_one_dtype(self.query, self.key, value)
        output = self._by_head(result).transpose(1, 2)
        changed = self.switch.finish(self.here, query, key, value, self.facts.mask, output, self._options(), None)
        return result if changed is output else changed.transpose(1, 2).reshape(result.shape)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any,
               **kwargs: Any) -> Tensor:  # fmt: skip
        self.num_done += 2
        key_once, value_once = (each[:, :: self.facts.num_repeats] for each in (key, value))
        here, changed = self.switch.begin(
            self.module, query, key_once, value_dim=value.shape[-1], causal=self.facts.causal
        )
        result = scaled_dot_product_attention(changed, key, value, attn_mask, *rest, **kwargs)
        output = result.transpose(1, 2)
        final = self.switch.finish(here, changed, key_once, value_once, self.facts.mask, output, self._options(), None)
        return result if final is output else final.transpose(1, 2)

    def check(self) -> None:
        """Raise `NotReproducible` where the module's call ended without both products."""
        if self.num_done != 2:
            raise self.switch.not_reproducible(
                self.module, f"{type(self.module).__name__} did not compute the two products of attention"
            )

    def _options(self) -> dict[str, Any]:
        facts = self.facts
        return {
            "scaling": facts.scale,
            "is_causal": facts.causal,
            "sliding_window": facts.window,
            "alibi_slope": facts.alibi_slope,
            "key_bias": facts.key_bias,
            "mask_shows": facts.mask_shows,
            "mask_hides": facts.mask_hides,
            "mask_bias": facts.mask_bias,
        }

    def _by_head(self, tensor: Tensor) -> Tensor:
        """Some modules lay batch and heads into one axis."""
        if tensor.ndim == 4:
            return tensor
        forward = self.switch.forward
        num_samples = 1 if forward is None else forward.num_samples
        return tensor.view(num_samples, -1, *tensor.shape[1:])


def _in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys as they were before the module made them float32 for the product, where nothing was lost."""
    if query.dtype == key.dtype == value.dtype:
        return query, key
    narrow = query.to(value.dtype), key.to(value.dtype)
    if torch.equal(narrow[0].to(query.dtype), query) and torch.equal(narrow[1].to(key.dtype), key):
        return narrow
    return query, key.to(query.dtype)
