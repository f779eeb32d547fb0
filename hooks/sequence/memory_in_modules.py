"""What a model keeps of a sequence in its modules instead of a cache, put there for the length of one forward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

# By the class of a module, the attributes that its forward leaves there for the next one.
_KEPT = {"RecurrentGemmaRecurrentBlock": ("conv1d_state",), "RecurrentGemmaRglru": ("recurrent_states",)}

_places: weakref.WeakKeyDictionary[nn.Module, list[tuple[weakref.ReferenceType[nn.Module], str]]] = (
    weakref.WeakKeyDictionary()
)


@contextmanager
def memory_in_modules(model: nn.Module, held: Sequence[Tensor | None]) -> Iterator[Callable[[], list[Tensor | None]]]:
    """Within the block the modules hold `held` (nothing where it is empty); afterwards what they held before.

    The block gets a function that says what they hold: what is to be given the next time. So several sequences, and
    forwards of other people, do not disturb each other.
    """
    places = _places_of(model)
    before = [getattr(module, name) for module, name in places]
    for (module, name), value in zip(places, held or [None] * len(places), strict=True):
        setattr(module, name, value)
    try:
        yield lambda: [getattr(module, name) for module, name in places]
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _places_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    if model not in _places:
        _places[model] = [
            (weakref.ref(module), name) for module in model.modules() for name in _KEPT.get(type(module).__name__, ())
        ]
    return [(module, name) for place, name in _places[model] if (module := place()) is not None]
