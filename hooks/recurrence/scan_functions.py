"""Catch the calls of functions of a module's source file while its forward runs, and leave the file as it was."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from probe.hooks.recurrence.layer import function_call

# Who is waiting for calls just now: the arguments that change in place, and where the calls go.
_waiting: ContextVar[tuple[tuple[tuple[str, ...], list[function_call]], ...]] = ContextVar("probe_scans", default=())
# What makes good what such a function leaves out, and shows with which arguments it would have come out like that.
Correction = Callable[[str, dict[str, Any], Any], tuple[dict[str, Any], Any]]
_correcting: ContextVar[Correction | None] = ContextVar("probe_scan_correction", default=None)
# What makes another call of a call that a function has had, for interventions; with the arguments that change in place.
CallChange = Callable[[function_call], function_call]
_changing: ContextVar[tuple[tuple[tuple[str, ...], CallChange], ...]] = ContextVar("probe_scan_changes", default=())
_installed: dict[tuple[int, str], tuple[Callable[..., Any], int]] = {}
_lock = threading.Lock()


@contextmanager
def functions_watched(module: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Within the block calls of these functions by forwards of the module's class can be caught.

    The names in the class's source file stand for wrappers meanwhile, which do nothing for a forward that is not
    watched. Several blocks may overlap, in any thread.
    """
    namespace = inspect.unwrap(type(module).forward).__globals__
    there = [name for name in names if callable(namespace.get(name))]
    with _lock:
        for name in there:
            own, count = _installed.get((id(namespace), name), (namespace[name], 0))
            if count == 0:
                namespace[name] = _wrapped(name, own)
            _installed[id(namespace), name] = own, count + 1
    try:
        yield
    finally:
        with _lock:
            for name in there:
                own, count = _installed.pop((id(namespace), name))
                if count > 1:
                    _installed[id(namespace), name] = own, count - 1
                else:
                    namespace[name] = own


@contextmanager
def corrected(by: Correction) -> Iterator[None]:
    """Within the block, in this context, what watched functions return goes through `by(name, arguments, output)`."""
    token = _correcting.set(by)
    try:
        yield
    finally:
        _correcting.reset(token)


def begin_catching(in_place: tuple[str, ...], into: list[function_call]) -> None:
    """From now on, in this context, put watched functions' calls into the list."""
    _waiting.set((*_waiting.get(), (in_place, into)))


def end_catching(into: list[function_call]) -> None:
    """Undo `begin_catching`; nothing happens where it was undone already."""
    _waiting.set(tuple(each for each in _waiting.get() if each[1] is not into))


def begin_changing(in_place: tuple[str, ...], by: CallChange) -> None:
    """From now on, in this context, have watched functions' calls changed before they are caught or go on."""
    _changing.set((*_changing.get(), (in_place, by)))


def end_changing(by: CallChange) -> None:
    """Undo `begin_changing`; nothing happens where it was undone already."""
    _changing.set(tuple(each for each in _changing.get() if each[1] is not by))


def _wrapped(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(own)

    @functools.wraps(own)
    def caught(*args: Any, **kwargs: Any) -> Any:
        waiting, correct, changing = _waiting.get(), _correcting.get(), _changing.get()
        if not waiting and correct is None and not changing:
            return own(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        names = {each for in_place, _ in (*waiting, *changing) for each in in_place}
        changed = {each: given[each] for each in names if given.get(each) is not None}
        given |= {each: _copied(state) for each, state in changed.items()}
        output = own(*args, **kwargs)
        if correct is not None:
            given, output = correct(name, given, output)
        call = function_call(name, given, changed, output)
        for _, change in changing:
            call = change(call)
        for _, into in waiting:
            into.append(call)
        return call.output

    return caught


def _copied(state: Any) -> Any:
    return state.clone() if isinstance(state, torch.Tensor) else tuple(each.clone() for each in state)
