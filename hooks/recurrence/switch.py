"""Watch the recurrent layers of a model, and hand out what they do, held against their own states and outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from probe.errors import DeviceTooSmall, NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.switch import current_forward
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.recurrence.layer import (
    mixer_forward,
    recurrent_layer,
    recurrent_layers,
    scanned,
    unknown_recurrences,
    without_known_recurrence,
)
from probe.hooks.recurrence.of_samples import by_phase, of_samples
from probe.hooks.recurrence.scan_functions import begin_catching, end_catching, functions_watched
from probe.hooks.sequence.forward_facts import forward_facts
from probe.kernels.recurrence import Recurrence

OnRecurrence = Callable[[int, Recurrence], None]

_BY_TOKEN = ("query", "key", "value", "gate", "log_decay", "output", "read_gate", "bonus", "output_gate")
_BY_HEAD = {"query": 2, "key": 2, "value": 2, "gate": 2, "log_decay": 2, "output": 2, "read_gate": 2, "bonus": 2}
_BY_HEAD |= {"output_gate": 2, "state_before": 1, "state_after": 1, "rate": 0, "skip": 0}


@contextmanager
def watched_recurrences(model: PreTrainedModel, on_recurrence: OnRecurrence) -> Iterator[None]:
    """Within the block `on_recurrence(sample, recurrence)` gets each recurrent layer's tokens, padding sliced off.

    To be used within `attached`, which knows of the forward that is running. Raises `NotReproducible` for a model
    without a recurrent layer of a known kind, or with one of an unknown kind, and during forwards where a layer's state
    or output is not what the recurrence gives.
    """
    layers = recurrent_layers(model)
    if not layers or unknown_recurrences(model):
        reason = without_known_recurrence(model) or "it has no recurrent layer of a kind that is known"
        raise NotReproducible(f"{name_of(model)}: {reason}")
    with ExitStack() as stack:
        for index, layer in layers.items():
            module = layer.module()
            assert module is not None
            stack.enter_context(functions_watched(module, layer.family.functions))
            stack.enter_context(_watch(model, index, layer, module, on_recurrence).attached())
        yield


class _watch:
    """One recurrent layer, watched for one reader."""

    def __init__(
        self, model: PreTrainedModel, index: int, layer: recurrent_layer, module: nn.Module, reader: OnRecurrence
    ) -> None:
        self.model, self.index, self.family, self.reader = model, index, layer.family, reader
        self.module = module
        self.forward: mixer_forward | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch the module's forwards within the block."""
        with ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(self._begins, with_kwargs=True).remove)
            stack.callback(self.module.register_forward_hook(self._ends, always_call=True).remove)
            for name in self.family.inner:
                inner = getattr(self.module, name)
                stack.callback(inner.register_forward_pre_hook(self._inner(name)).remove)
            yield

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stop()
        if current_forward(self.model) is None:
            return
        given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        self.forward = mixer_forward(given, self.family.before(module, given))
        begin_catching(self.family.in_place, self.forward.calls)

    def _inner(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def seen(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self.forward is not None:
                self.forward.inputs[name] = args[0].detach()

        return seen

    def _stop(self) -> mixer_forward | None:
        forward, self.forward = self.forward, None
        if forward is not None:
            end_catching(forward.calls)
        return forward

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward, facts = self._stop(), current_forward(self.model)
        # Without an output the forward raised, and that error is the one to see.
        if forward is None or facts is None or output is None:
            return
        forward.output = output
        for call in forward.calls:
            if call.recurrences is not None:
                for sample, parts in call.recurrences.items():
                    for part in parts:
                        self._give(sample, part, facts)
                return
        with torch.no_grad():
            self._hand_out(self._whole(self.family.read(module, forward), facts), facts)

    def _whole(self, parts: list[scanned], facts: forward_facts) -> scanned:
        """Put together what came in parts: tokens after one another, or one head at a time."""
        if not parts:
            self._refuse(
                f"its forward did not call {' or '.join(self.family.functions)}, so its recurrence cannot be seen"
            )
        lengths = [part.value.shape[1] for part in parts]
        if len(parts) > 1 and sum(lengths) == facts.num_queries:
            return _joined(parts, dict.fromkeys(_BY_TOKEN, 1), state_after=parts[-1].state_after)
        if any(length != facts.num_queries for length in lengths):
            self._refuse(f"it scans {lengths} tokens where the forward has {facts.num_queries}")
        if len(parts) == 1:
            return parts[0]
        return _joined(parts, _BY_HEAD)

    def _hand_out(self, whole: scanned, facts: forward_facts) -> None:
        for sample, _, recurrence in of_samples(whole, facts, self.index, self._refuse):
            for part in by_phase(recurrence, facts):
                self._give(sample, part, facts)

    def _give(self, sample: int, part: Recurrence, facts: forward_facts) -> None:
        handed = facts.handed
        if handed is not None:
            first = handed.first_new(self.reader, f"recurrence {self.index}", part.start, part.stop)
            if first == part.stop:
                return
            part = part.between(first - part.start, part.num_tokens)
        try:
            with allocation_errors():
                self.reader(sample, part)
        except torch.OutOfMemoryError as error:
            raise DeviceTooSmall(
                f"{name_of(self.model)}, layer {self.index}: what reads its recurrence ran out of device memory at "
                f"{part.num_tokens} tokens; smaller chunks or fewer statistics may do: {error}"
            ) from error
        if handed is not None:
            handed.done(self.reader, f"recurrence {self.index}", part.stop)

    def _refuse(self, reason: str) -> NoReturn:
        raise NotReproducible(f"{name_of(self.model)}, layer {self.index}: {reason}")


def _joined(parts: list[scanned], along: Mapping[str, int], **others: Any) -> scanned:
    """Join tensors along the axis given for each; the rest is as in the first part."""
    joined: dict[str, Any] = {}
    for name, dim in along.items():
        tensors = [getattr(part, name) for part in parts]
        joined[name] = None if tensors[0] is None else torch.cat(tensors, dim)
    return dataclasses.replace(parts[0], **joined, **others)
