"""Let interventions change what a model's recurrent layers put through, before it goes on and before it is traced."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of, text_decoder
from probe.hooks.attention.switch import attached, current_forward
from probe.hooks.attention.tap import tap
from probe.hooks.recurrence.layer import function_call, recurrent_layer, recurrent_layers, scanned
from probe.hooks.recurrence.of_samples import of_samples, phases
from probe.hooks.recurrence.scan_functions import begin_changing, end_changing, functions_watched
from probe.hooks.sequence.forward_facts import forward_facts
from probe.kernels.exact import exact
from probe.kernels.recurrence import Recurrence

Change = Callable[[int, Recurrence], Recurrence]
"""Takes which sample of the batch it is, and its recurrence; returns the recurrence as it shall be."""


@runtime_checkable
class Remembering(Protocol):
    """A change that must know again the sequence that it goes on with."""

    def left(self, sample: int, layer: int, stop: int, state: Float[Tensor, "state_head state channel"]) -> None:
        """Take the state that a layer goes on from after the token before `stop`."""


def tell_left(
    change: object, sample: int, layer: int, stop: int, state: Float[Tensor, "state_head state channel"]
) -> None:
    """Tell a change that remembers, and no other, what a layer goes on from."""
    if isinstance(change, Remembering):
        change.left(sample, layer, stop, state)


_changed: weakref.WeakKeyDictionary[nn.Module, list[Change]] = weakref.WeakKeyDictionary()


def changes_of(model: PreTrainedModel) -> list[Change]:
    """Return what changes the model's recurrences now, those entered first in front."""
    return _changed.get(text_decoder(model), [])


@contextmanager
def changing(model: PreTrainedModel, change: Change) -> Iterator[None]:
    """Within the block each recurrent layer's tokens go through `change`, after what was entered before.

    The model's own scan runs and is held against its recurrence; where a change returns another recurrence, that is put
    through again, its output and last state take the place of the model's own, and readers are handed it.
    """
    decoder = text_decoder(model)
    with ExitStack() as stack:
        stack.enter_context(attached(model, tap()))
        if decoder not in _changed:
            there = _changed[decoder] = []
            stack.callback(_changed.pop, decoder)
            for index, layer in recurrent_layers(model).items():
                module = layer.module()
                assert module is not None
                if layer.family.why_unchangeable(module):
                    continue
                stack.enter_context(functions_watched(module, layer.family.functions))
                one = _layer(model, index, layer, there)
                stack.callback(module.register_forward_pre_hook(one.begins).remove)
                stack.callback(module.register_forward_hook(one.ends, always_call=True).remove)
        there = _changed[decoder]
        there.append(change)
        stack.callback(_without, there, change)
        yield


def _without(there: list[Change], change: Change) -> None:
    there[:] = [each for each in there if each is not change]


def same_state(left: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a state is one that was left, but for its rounding in the model's dtype on the way to a cache."""
    if left.shape != found.shape:
        return False
    allowed = 4 * torch.finfo(dtype).eps * left.abs().max()
    return bool(((left - found.to(left)).abs() <= allowed).all())


class _layer:
    """One recurrent layer, whose scans are changed."""

    def __init__(self, model: PreTrainedModel, index: int, layer: recurrent_layer, changes: list[Change]) -> None:
        self.model, self.index, self.family, self.changes = model, index, layer.family, changes
        self.num_calls = 0
        self.left: dict[int, tuple[int, Tensor]] = {}
        # One object for `end_changing` to know again.
        self.by = self.changed

    def begins(self, _module: nn.Module, _args: Any) -> None:
        end_changing(self.by)
        if current_forward(self.model) is not None:
            self.num_calls = 0
            begin_changing(self.family.in_place, self.by)

    def ends(self, _module: nn.Module, _args: Any, output: Any) -> None:
        end_changing(self.by)
        # Without an output the forward raised, and that error is the one to see.
        if output is not None and current_forward(self.model) is not None and self.num_calls == 0:
            self._refuse(f"its forward did not call {' or '.join(self.family.functions)}, so nothing can be changed")

    def changed(self, call: function_call) -> function_call:
        """Return a call as the interventions have it."""
        facts = current_forward(self.model)
        self.num_calls += 1
        if facts is None:
            return call
        if self.num_calls > 1:
            self._refuse("it scans more than once in one forward, so its recurrence cannot be changed")
        with torch.no_grad():
            return self._through(call, facts)

    def _through(self, call: function_call, facts: forward_facts) -> function_call:
        whole = self.family.scanned_by(call)
        output, found, is_other = whole.output.clone(), dict[int, list[Recurrence]](), False
        shape = len(output), whole.value.shape[2], whole.key.shape[-1], whole.value.shape[-1]
        states = output.new_zeros(shape, dtype=whole.state_dtype)
        if whole.state_after is not None:
            states = whole.state_after.to(states.dtype).clone()
        starts = self._starts(whole, facts)
        for sample, (first, _), own in of_samples(whole, facts, self.index, self._refuse, starts):
            found[sample], state, since = [], own.state_before, False
            for phase, begin, end in phases(own, facts):
                part = dataclasses.replace(own.cut(begin, end, state), phase=phase)
                changed = part
                for change in self.changes:
                    changed = change(sample, changed)
                found[sample].append(changed)
                since = since or changed is not part
                with exact(output.device):
                    if not since:
                        state = own.state_before if end == own.num_tokens else part.state_after()
                        continue
                    read, state = changed.outputs()
                    if whole.skip is not None:
                        read = read + whole.skip.to(read.dtype) * part.value.to(read.dtype)
                    rows = slice(first + begin, first + end)
                    if whole.output_gate is not None:
                        read = read * whole.output_gate[sample, rows].to(read.dtype)
                output[sample, rows] = read.to(output.dtype)
            if since:
                is_other = True
                states[sample] = state.to(states.dtype)
            self.left[sample] = own.stop, states[sample].clone()
            for change in self.changes:
                tell_left(change, sample, self.index, own.stop, states[sample])
        if not is_other:
            return call
        return dataclasses.replace(call, output=self.family.instead(call, output, states), recurrences=found)

    def _starts(self, whole: scanned, facts: forward_facts) -> dict[int, int]:
        """Return where the samples of a forward begin that goes on from states, whose cache does not count tokens.

        Such is `generate` of a model that recurs in all its layers. A sample is known by the state that it was left in.
        """
        if facts.num_past > 0 or whole.state_before is None:
            return {}
        dtype = whole.value.dtype
        return {
            sample: stop
            for sample, (stop, state) in self.left.items()
            if sample < len(whole.state_before)
            and bool((whole.state_before[sample] != 0).any())
            and same_state(state, whole.state_before[sample], dtype)
        }

    def _refuse(self, reason: str) -> NoReturn:
        raise NotReproducible(f"{name_of(self.model)}, layer {self.index}: {reason}")
