"""Let taps take part in a model's attention, and hand out its verified calls."""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import DeviceTooSmall, NotReproducible
from probe.hooks.attention.bridge import bridge_attention
from probe.hooks.attention.calls_by_phase import by_phase, from_query
from probe.hooks.attention.chunk import attend
from probe.hooks.attention.fused import fused_attention
from probe.hooks.attention.handed_out import handed_out
from probe.hooks.attention.interface import name_of, own_attention, redirected, text_decoder
from probe.hooks.attention.module import attention_module_of
from probe.hooks.attention.products import products_caught
from probe.hooks.attention.relative_bias import attend_with, biases_as_tables, relative_bias
from probe.hooks.attention.tap import site, tap
from probe.hooks.attention.verified_calls import verified_calls
from probe.hooks.loading.allocation import allocation_errors
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.models.two_stacks import facts_of_stack, two_stacks
from probe.hooks.recurrence.layer import recurs_everywhere
from probe.hooks.sequence.forward_facts import Part, Phase, forward_facts
from probe.kernels.attention_output import attention_output
from probe.kernels.call import Call

MANY_QUERIES = 64
"""From so many queries on, where all shall attend otherwise, the model's own attention is computed of a few alone."""
VERIFIED_ROWS = 16
"""As many, the last ones: with them the call is verified."""

# Sample, first row of the forward, the call as it shall be and as it was: the same object where nothing changes it.
_part = tuple[int, int, Call, Call]
_switches: weakref.WeakKeyDictionary[nn.Module, attention_switch] = weakref.WeakKeyDictionary()


@contextmanager
def attached(model: PreTrainedModel, what: tap, *, alone: bool = False) -> Iterator[None]:
    """Let `what` take part in every attention call of `model` within the block; afterwards the model is as before.

    With `alone` every other tap rests meanwhile: this is how a reference run is made inside an ablation. Raises
    `NotReproducible` where attention cannot be reached, by the latest when a forward ends without having called it.
    """
    switch = _switch_of(model)
    with ExitStack() as stack:
        if switch is None:
            switch = attention_switch(model)
            stack.enter_context(switch.installed())
        stack.enter_context(switch.with_tap(what, alone))
        yield


@contextmanager
def declared(
    model: PreTrainedModel, phase: Phase | None, tokens: Tensor | None, handed: handed_out | None = None
) -> Iterator[None]:
    """Tell the taps, within the block, which phase forwards are in and which token ids the sequence has.

    Readers get what `handed` does not say that they have had.
    """
    switch = _switch_of(model)
    if switch is None:
        yield
        return
    before = switch.phase, switch.tokens, switch.handed
    switch.phase, switch.tokens, switch.handed = phase, tokens, handed
    try:
        yield
    finally:
        switch.phase, switch.tokens, switch.handed = before


@contextmanager
def resting(model: PreTrainedModel) -> Iterator[None]:
    """Within the block forwards of `model` are not watched: for such as do not attend, or are no one's to see."""
    switch = _switch_of(model)
    if switch is None:
        yield
        return
    before, switch.rests = switch.rests, True
    try:
        yield
    finally:
        switch.rests = before


def current_forward(model: PreTrainedModel) -> forward_facts | None:
    """The forward of `model` that is running, for hooks on its layers; None where they shall rest."""
    switch = _switch_of(model)
    return None if switch is None or switch.alone is not None else switch.forward


def watchers(model: PreTrainedModel) -> int:
    """How many take part in the model's attention."""
    switch = _switch_of(model)
    return 0 if switch is None else len(switch.taps)


def _switch_of(model: PreTrainedModel) -> attention_switch | None:
    return next((_switches[module] for module in text_decoder(model).modules() if module in _switches), None)


class attention_switch:
    """One model's attention, redirected: which taps take part, and the forward that is running."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.decoder, self.name = model, text_decoder(model), name_of(model)
        self.taps: list[tap] = []
        self.alone: tap | None = None
        self.stacks: dict[nn.Module, Part] = {}
        self.forward: forward_facts | None = None
        self.root: nn.Module | None = None
        self.phase: Phase | None = None
        self.tokens: Tensor | None = None
        self.handed: handed_out | None = None
        self.rests = False
        self.verified = verified_calls(self.name)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Redirect the decoder's attention here, and watch the model's forwards."""
        self.stacks = two_stacks(self.model)
        with ExitStack() as stack:
            stack.enter_context(uncompiled(self.model))
            stack.enter_context(redirected(self.model, self.attend))
            stack.enter_context(biases_as_tables(self.decoder))
            for module in self.decoder.modules():
                _switches[module] = self
                stack.callback(_switches.pop, module, None)
                known = attention_module_of(module)
                if known is not None:
                    stack.enter_context(products_caught(module, known, self))
            stack.enter_context(bridge_attention(self.decoder, self))
            for module in self.model.modules():
                if isinstance(module, PreTrainedModel) or module in self.stacks:
                    before = module.register_forward_pre_hook(self._begins, with_kwargs=True)
                    after = module.register_forward_hook(self._ends, always_call=True)
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            yield

    @contextmanager
    def with_tap(self, what: tap, alone: bool) -> Iterator[None]:
        """Add a tap for the length of the block."""
        resting = self.alone
        if alone:
            self.alone = what
        else:
            self.taps.append(what)
        try:
            yield
        finally:
            self.alone = resting
            if not alone:
                self.taps.remove(what)

    def _begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A model's forward runs through its inner models: the outermost one has the caller's mask. Where the outermost
        # begins anew, an interrupt ended its last forward before `_ends` could see it.
        if self.rests or (self.root is not None and module is not self.root):
            return
        if module.training:
            raise NotReproducible(
                f"{self.name}: it is in training mode, where dropout makes each forward another one; call its eval()"
            )
        if self.stacks and module not in self.stacks:
            return
        self.root = module
        said: dict[str, Any] = {"model_name": self.name, "phase": self.phase, "tokens": self.tokens}
        said["handed"] = self.handed
        part = self.stacks.get(module)
        if part is None:
            self.forward = forward_facts.of(module, args, kwargs, **said)
        else:
            self.forward = facts_of_stack(part, module, args, kwargs, **said)

    def _ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is not self.root:
            return
        facts, self.root, self.forward = self.forward, None, None
        # Without an output the forward raised, and that error is the one to see.
        if output is None or facts is None or facts.layers_called:
            return
        if not recurs_everywhere(self.model):
            raise NotReproducible(
                f"{self.name}: its forward never called transformers' attention interface, so its attention "
                "cannot be seen"
            )

    def attend(
        self, own: own_attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
        mask: Tensor | None, options: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Run the model's own attention with the taps around it."""
        causal = options.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        if self.rests:
            return attend_with(own, module, query, key, value, mask, options, causal=causal)
        here, query = self.begin(module, query, key, value_dim=value.shape[-1], causal=causal)
        last = self._last_rows(own, here, query, key, value, mask, options)
        if last is not None:
            changed = self._changed(here, query, key, value, mask, last, options, None)
            if all(now is not before for _, _, now, before in changed):
                output = value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
                return self._passed_on(here, changed, output), None
        output, weights, mask, fused = attend(
            own, module, query, key, value, mask, options, causal=causal, observed=bool(self._observers())
        )
        if last is None:
            return self.finish(here, query, key, value, mask, output, options, fused), weights
        # Some of it is the model's own after all. What is to change has been asked, and is not asked again.
        own_calls = self._parts(here, query, key, value, mask, output, options, fused)
        kept = [
            (sample, first, now if now is not before else part, part)
            for (sample, first, now, before), (_, _, part) in zip(changed, own_calls, strict=True)
        ]
        return self._passed_on(here, kept, output), weights

    def _last_rows(
        self, own: own_attention, here: site, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor | None:  # fmt: skip
        """Return the model's own output of the last queries, to verify by, where all of them shall be computed anew.

        None where they are few, where nothing changes them, or where the last ones are not told by a mask.
        """
        taps = [each for each in self._taps(here.part) if each.changes_calls and each.changes_layer(here.layer)]
        ends = {here.forward.queries_of(sample)[1] for sample in range(query.shape[0])}
        if not taps or not own.is_sdpa or query.shape[2] < MANY_QUERIES or ends != {query.shape[2]} or not here.causal:
            return None
        if isinstance(options.get("position_bias"), relative_bias) or (mask is not None and mask.ndim != 4):
            return None
        if mask is None:
            position = torch.arange(key.shape[2], device=key.device)
            rows = (position <= position[-VERIFIED_ROWS:, None])[None, None]
        else:
            rows = mask[:, :, -VERIFIED_ROWS:]
        output: Tensor = own(here.module, query[:, :, -VERIFIED_ROWS:], key, value, rows, **options)[0]
        return output

    def begin(
        self, module: nn.Module, query: Tensor, key: Tensor, *, value_dim: int, causal: bool
    ) -> tuple[site, Tensor]:
        """Return where a module is about to attend, and the queries as the taps will have them."""
        facts = self.forward
        if facts is None:
            raise NotReproducible(f"{self.name}: an attention layer was called outside a forward of the model")
        # A decoder's own attention is causal, what it looks over of the encoder is not.
        facts = facts if causal or facts.cross is None else facts.cross
        here = site(
            _layer_index(module, self.decoder), module, facts, causal,
            query.shape[1], key.shape[1], key.shape[-1], value_dim,
        )  # fmt: skip
        if here.layer in facts.layers_called:
            self._refuse(here, "it attends more than once in one forward, so no one matrix is its attention")
        facts.layers_called.add(here.layer)
        for each in self._taps(here.part):
            query = each.change_query(here, query)
        return here, query

    def finish(
        self, here: site, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output: Tensor,
        options: dict[str, Any], fused: fused_attention | None,
    ) -> Tensor:  # fmt: skip
        """Hand out the calls of a module that has attended; return its output as the taps will have it."""
        if tuple(output.shape) != (query.shape[0], query.shape[2], query.shape[1], value.shape[-1]):
            raise NotReproducible(
                f"{self.name}, layer {here.layer}: its attention returned shape {tuple(output.shape)}, not batch × "
                "query × head × channel"
            )
        changed: list[_part] = []
        if any(each.wants_calls or each.changes_calls for each in self._taps(here.part)):
            changed = self._changed(here, query, key, value, mask, output, options, fused)
        return self._passed_on(here, changed, output)

    def not_reproducible(self, module: nn.Module, reason: str) -> NotReproducible:
        """The refusal of a module's attention, by name."""
        return NotReproducible(f"{self.name}, layer {_layer_index(module, self.decoder)}: {reason}")

    def _taps(self, part: Part | None = None) -> list[tap]:
        taps = self.taps if self.alone is None else [self.alone]
        return [each for each in taps if part is None or each.part in (None, part)]

    def observed(self) -> bool:
        """Whether somebody takes part who wants calls."""
        return bool(self._observers())

    def _observers(self) -> list[tap]:
        return [each for each in self._taps() if each.wants_calls]

    def _parts(
        self, here: site, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        output: Tensor, options: dict[str, Any], fused: fused_attention | None,
    ) -> Iterator[tuple[int, int, Call]]:  # fmt: skip
        """Yield sample, first row and verified call, cut where its phase changes."""
        for sample, rows, first_key, call in self.verified.calls(here, query, key, value, mask, output, options, fused):
            for part in by_phase(call, here.forward, first_key):
                yield sample, rows[0] + part.query_start - call.query_start, part

    def _changed(
        self, here: site, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        output: Tensor, options: dict[str, Any], fused: fused_attention | None,
    ) -> list[_part]:  # fmt: skip
        """Return each part of the calls as taps have changed it, and as it was."""
        changing = [each for each in self._taps(here.part) if each.changes_calls]
        found = []
        for sample, first, before in self._parts(here, query, key, value, mask, output, options, fused):
            now = before
            for each in changing:
                now = each.change_call(here, sample, now)
            found.append((sample, first, now, before))
        return found

    def _passed_on(self, here: site, parts: Sequence[_part], output: Tensor) -> Tensor:
        """Attend to what was changed, hand all out, and return the output as the taps will have it."""
        taps, own = self._taps(here.part), output
        for sample, first, now, before in parts:
            if now is not before:
                output = output.clone() if output is own else output
                now = self._attended(here, now, output[sample, first : first + before.num_queries])
            for each in taps:
                if each.wants_calls:
                    self._give(each, here, sample, now)
        for each in taps:
            output = each.change_output(here, output)
        return output

    def _attended(self, here: site, call: Call, output: Tensor) -> Call:
        """Write into `output` what a changed call's heads put out; return the call with its own log-sum-exp or none."""
        try:
            made, log_sum_exp = attention_output(call)
        except ValueError as error:
            self._refuse(here, f"as interventions have changed it, it cannot attend: {error}")
        output.copy_(made)
        return dataclasses.replace(call, log_sum_exp=log_sum_exp)

    def _give(self, reader: tap, here: site, sample: int, call: Call) -> None:
        handed, stop = here.forward.handed, call.query_start + call.num_queries
        if handed is not None:
            first = handed.first_new(reader, call.layer, call.query_start, stop)
            if first == stop:
                return
            call = from_query(call, first - call.query_start)
        try:
            with allocation_errors():
                reader.call(sample, call)
        except torch.OutOfMemoryError as error:
            raise DeviceTooSmall(
                f"{self.name}, layer {here.layer}: what reads its attention ran out of device memory at "
                f"{call.num_queries} queries × {call.num_keys} keys; smaller chunks or fewer statistics may do: {error}"
            ) from error
        if handed is not None:
            handed.done(reader, call.layer, stop)

    def _refuse(self, here: site, reason: str) -> NoReturn:
        raise NotReproducible(f"{self.name}, layer {here.layer}: {reason}")


def _layer_index(module: nn.Module, decoder: nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if isinstance(index, int) and index >= 0:
        return index
    # Encoders do not number their layers, and Zamba-2 says −1 of all: the number in the module's path does.
    path = next(name for name, each in decoder.named_modules() if each is module)
    number = re.search(r"\d+", path)
    return int(number.group()) if number else 0
