"""What is known of an attention module that computes attention by itself, not by transformers' attention interface."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class own_attention_facts:
    """How one call of such a module attends: what its two products do not show."""

    scale: float
    """Factor on query · key, as these go into the product."""
    mask: Tensor | None = None
    """The 4-D mask that the module was given, as it is."""
    mask_shows: Literal["all", "causal", "padding"] = "all"
    """What of the rules that hide keys the mask holds: all of them, all but the window, or padding alone. The rest the
    module applies by itself."""
    mask_hides: bool = False
    """Whether the mask, a boolean one, is True where a key is hidden."""
    mask_bias: Float[Tensor, "batch head key"] | None = None
    """What the mask, an additive one, adds to the logits of each key that is seen; 0 where this is None."""
    causal: bool = True
    """Whether keys after the query are hidden."""
    window: int | None = None
    """Number of positions that a query sees, its own included."""
    alibi_slope: Float[Tensor, "head"] | None = None
    """As in `Call`."""
    key_bias: Float[Tensor, "batch head key"] | None = None
    """What the module adds to the scaled logits of each key; must be the slopes times position, but for rounding."""
    num_repeats: int = 1
    """How often the module repeats each key-value head before the product."""


class AttentionModule:
    """One family of attention modules: derive from it, in a file of the subclass's own name in `attention_modules`.

    The module's own forward computes two batched products, query · key and probabilities · value, or calls SDPA once.
    They are caught as they happen (see `attention_products`), and everything around them is left to the module, so that
    its result stays bit by bit what it is.
    """

    classes: ClassVar[tuple[str, ...]]
    """Full names of the classes whose forward this is."""

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Return how the module attends when called with these arguments, by the names in its forward's signature.

        Raises `NotReproducible` for what cannot be said of it.
        """
        raise NotImplementedError


def attention_module_of(module: nn.Module) -> AttentionModule | None:
    """What is known of a module that attends by itself; None for all others."""
    for each in type(module).__mro__:
        # A subclass with a forward of its own computes something else.
        if "forward" in vars(each):
            return _known().get(f"{each.__module__}.{each.__qualname__}")
    return None


def arguments_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the module's forward by their names."""
    given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
    return {**given, **given.pop("kwargs", {})}


@functools.cache
def _known() -> dict[str, AttentionModule]:
    found: dict[str, AttentionModule] = {}
    for path in sorted(Path(__file__).parents[1].joinpath("attention_modules").glob("*.py")):
        if not path.stem.startswith("_"):
            module = importlib.import_module(f"probe.hooks.attention_modules.{path.stem}")
            family: AttentionModule = getattr(module, path.stem)()
            found.update(dict.fromkeys(family.classes, family))
    return found
