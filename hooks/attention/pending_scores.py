"""The scores of an attention that somebody else writes out step by step: what is done to them is noted, not done."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import NotReproducible


class unknown_step(NotReproducible):
    """Something is done to scores that is not understood; whoever knows the model and the layer puts them before it."""


@dataclass(frozen=True, eq=False)
class pending_scores:
    """Stands where a tensor of batch × head × query × key would stand, and notes the steps from scores to pattern.

    Code that computes attention in the open (scores, scale, softcap, mask, learned sink, softmax, product with the
    values) runs with it unchanged, in memory linear in the tokens. A step that is not known is refused by name: nothing
    is left out. Tensors by its side are kept, among them the mask.
    """

    query: Float[Tensor, "batch head query channel"]
    """Queries of the product."""
    key: Float[Tensor, "batch head key channel"]
    """Keys of the product, as many heads as queries."""
    dtype: torch.dtype
    """What the tensor's dtype would be."""
    scale: float = 1.0
    """Factor on the products so far; after `tanh` that within it."""
    capped: bool = False
    """Whether `tanh` was taken."""
    softcap: float = 1.0
    """Factor after `tanh`."""
    masks: tuple[Tensor, ...] = ()
    """What was added to the scores, and, boolean, True where a key was not hidden."""
    ahead_hidden: bool = False
    """Whether keys after the query are hidden without a mask that says so; the last query stands at the last key."""
    sink: Float[Tensor, "batch head query 1"] | None = None
    """A column that was put beside the keys."""
    is_pattern: bool = False
    """Whether the softmax was taken."""
    left_out: tuple[str, ...] = field(default=("isnan", "isneginf"), repr=False)
    """Questions whose answer concerns only rows that see no key: padding, which is never read."""

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        extra = 0 if self.sink is None or self.is_pattern else 1
        return torch.Size((*self.query.shape[:3], self.key.shape[2] + extra))

    @property
    def device(self) -> torch.device:
        """Where it would lie."""
        return self.query.device

    @property
    def ndim(self) -> int:
        """Four axes."""
        return 4

    def dim(self) -> int:
        """Four axes."""
        return 4

    def to(self, *args: Any, **kwargs: Any) -> pending_scores:
        """Note the dtype; the device stays."""
        kinds = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)]
        return dataclasses.replace(self, dtype=kinds[0]) if kinds else self

    def __mul__(self, factor: Any) -> pending_scores:
        number = _number(factor)
        if number is None or self.masks or self.is_pattern or self.sink is not None:
            raise _unknown("a product of its scores with a tensor, or after the mask")
        if self.capped:
            return dataclasses.replace(self, softcap=self.softcap * number)
        return dataclasses.replace(self, scale=self.scale * number)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> pending_scores:
        number = _number(divisor)
        if not number:
            raise _unknown("a quotient of its scores with a tensor")
        return self * (1 / number)

    def __add__(self, mask: Any) -> pending_scores:
        if not isinstance(mask, Tensor) or self.is_pattern or self.sink is not None:
            raise _unknown("a sum with its scores that is no mask")
        return dataclasses.replace(self, masks=(*self.masks, mask))

    __radd__ = __add__

    def __sub__(self, other: Any) -> pending_scores:
        # A constant in each row changes no probability.
        if isinstance(other, of_rows):
            return self
        raise _unknown("a difference of its scores with a tensor")

    def __getitem__(self, index: Any) -> pending_scores:
        if self.is_pattern and self.sink is not None and index == (..., slice(None, -1, None)):
            return self
        raise _unknown("a part of its scores")

    def tanh(self) -> pending_scores:
        """Note the softcap's `tanh`."""
        if self.capped or self.masks or self.is_pattern:
            raise _unknown("a second tanh, or one after the mask")
        return dataclasses.replace(self, capped=True)

    def masked_fill(self, hidden: Any, value: Any) -> pending_scores:
        """Note a mask, True where a key is hidden; rows without any key are nobody's to see."""
        if isinstance(hidden, of_rows):
            return self
        number = _number(value)
        if not isinstance(hidden, Tensor) or self.is_pattern or number is None or number > -1e4:
            raise _unknown("something filled into its scores that hides no key")
        return dataclasses.replace(self, masks=(*self.masks, ~hidden.to(torch.bool)))

    def max(self, dim: int | None = None, keepdim: bool = False) -> of_rows:
        """Each row's largest score, which may be taken off it."""
        return of_rows()

    def softmax(self, dim: int | None = None, dtype: torch.dtype | None = None) -> pending_scores:
        """Note the softmax over the keys."""
        if self.is_pattern or dim not in (-1, 3):
            raise _unknown("a second softmax, or one not over keys")
        return dataclasses.replace(self, is_pattern=True, dtype=dtype or self.dtype)

    def with_sink(self, column: Tensor) -> pending_scores:
        """Note a column beside the keys."""
        if self.sink is not None or self.is_pattern:
            raise _unknown("a second column beside its scores")
        return dataclasses.replace(self, sink=column)

    def mask(self) -> Tensor | None:
        """All masks in one: boolean and True where a key is seen where they all are, else added to the scores."""
        if len(self.masks) < 2:
            return self.masks[0] if self.masks else None
        if all(each.dtype == torch.bool for each in self.masks):
            return functools.reduce(torch.logical_and, self.masks)
        return functools.reduce(torch.add, (_added(each, self.query.dtype) for each in self.masks)).clamp_min(
            torch.finfo(self.query.dtype).min
        )

    def made(self) -> Tensor:
        """The tensor that this stands for: batch × head × query × key (and one, where a sink is beside the keys)."""
        made = self.query @ self.key.transpose(-2, -1) * self.scale
        if self.capped:
            made = made.tanh() * self.softcap
        for mask in self.masks:
            made = made + _added(mask, made.dtype)
        if self.ahead_hidden:
            num_queries, num_keys = made.shape[-2:]
            seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=made.device)
            made = made.masked_fill(~seen.tril(num_keys - num_queries), torch.finfo(made.dtype).min)
        if self.sink is not None:
            made = torch.cat([made, self.sink.to(made)], dim=-1)
        return made.softmax(dim=-1, dtype=torch.float32).to(self.dtype) if self.is_pattern else made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unknown(f"{name} of its scores")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is known with a pending tensor; refuse everything else by name."""
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", str(function))
        if name == "cat":
            return _cat(*args, **kwargs)
        if name == "where" and isinstance(args[0], of_rows):
            return args[2]
        if not args or not isinstance(args[0], cls):
            raise _unknown(f"{name} on its scores")
        if name == "zeros_like":
            return of_rows()
        if name in args[0].left_out:
            return of_rows()
        if name == "dropout":
            return _dropout(*args, **kwargs)
        if name == "softmax":
            # The operator and torch.nn.functional differ in what else they take.
            return args[0].softmax(kwargs.get("dim", args[1] if len(args) > 1 else None), kwargs.get("dtype"))
        if name in ("tanh", "masked_fill", "max", "to"):
            return getattr(args[0], name)(*args[1:], **kwargs)
        raise _unknown(f"{name} on its scores")


class of_rows:
    """Something of whole rows: their maxima, or whether they see no key. Nothing that is computed depends on it."""

    @property
    def values(self) -> of_rows:
        return self

    def all(self, *args: Any, **kwargs: Any) -> of_rows:
        return self

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "where":
            return args[2]
        raise _unknown(f"{getattr(function, '__name__', function)} on its scores")


def _cat(parts: Any, dim: int = 0) -> pending_scores:
    if len(parts) != 2 or dim not in (-1, 3) or not isinstance(parts[0], pending_scores) or parts[1].shape[-1] != 1:
        raise _unknown("something put beside its scores that is no learned sink")
    return parts[0].with_sink(parts[1])


def _dropout(given: pending_scores, p: float = 0.5, training: bool = True, inplace: bool = False) -> pending_scores:
    if training and p > 0:
        raise _unknown("dropout")
    return given


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _unknown(what: str) -> unknown_step:
    return unknown_step(f"its attention does what is not understood: {what}")
