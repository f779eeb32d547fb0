"""Which sample is being read, for interventions that act on its spans, and what they make of it before it is read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from transformers import PreTrainedModel

from probe.sample import Sample

Preparation = Callable[[Sample], Sample]

_read: ContextVar[Sample | None] = ContextVar("sample_read", default=None)
_preparations: weakref.WeakKeyDictionary[PreTrainedModel, list[Preparation]] = weakref.WeakKeyDictionary()


@contextmanager
def reading(sample: Sample) -> Iterator[None]:
    """Within the block forwards are of this sample."""
    token = _read.set(sample)
    try:
        yield
    finally:
        _read.reset(token)


def sample_read() -> Sample | None:
    """Return the sample that is being read; None in a forward of which nobody said what it reads."""
    return _read.get()


@contextmanager
def preparing(model: PreTrainedModel, preparation: Preparation) -> Iterator[None]:
    """Within the block every sample that is read with `model` goes through `preparation` first, and what comes back is
    read in its place; those entered first go first.

    It may put the sample through the model itself (with a tap `alone`), and may return it as it is.
    """
    there = _preparations.setdefault(model, [])
    there.append(preparation)
    try:
        yield
    finally:
        there.remove(preparation)


def prepared(model: PreTrainedModel, sample: Sample) -> Sample:
    """Return what interventions make of a sample that is about to be read."""
    for preparation in tuple(_preparations.get(model, ())):
        sample = preparation(sample)
    return sample
