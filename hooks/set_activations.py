"""Set single channels of the residual stream: massive activations to zero, or to their mean."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_layers
from probe.hooks.attention.switch import attached, current_forward
from probe.hooks.attention.tap import tap
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.mean_head_output import run
from probe.hooks.recurrence.layer import recurrent_layers
from probe.hooks.sequence.residual_stream import decoder_layers
from probe.hooks.sequence.token_ids import token_ids
from probe.sample import Sample

Values = Literal["zero", "mean"]
Where = Literal["first", "later", "massive"]

# Takes one sample's hidden states, which may be written to, and its tokens' positions; returns what they become.
_Setting = Callable[[Tensor, Tensor], Tensor]
_active: weakref.WeakKeyDictionary[nn.Module, tuple[list[_Setting], RemovableHandle]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class set_activations(Intervention):
    """Set channels of the residual stream after one layer: `with set_activations(2, [1415, 2533])(model):`.

    Sun et al. (2024, arXiv 2402.17762, and the authors' code) set a model's massive activations, which stand in a few
    channels of a few tokens, to zero and to their mean over texts. `massive_activations` finds layer and channels.
    Where the authors take the token of the largest activation of a text, every token is taken whose channel is massive
    by their bounds (`least` and `times_median`), which chunks and decoding know as well: a largest one is known only
    when the text has ended. That is this toolkit's own.

    It acts on what the layer hands on, so on the keys, values and logits of all layers after it. Raises `UsageError`
    naming the field for a layer or a channel that the model does not have.
    """

    layer: int
    """Index of the decoder layer after which it acts, from 0; the authors' demonstration takes 2."""
    channels: Sequence[int]
    """Channels of the residual stream, from 0; at a token where it acts, all of them are set."""
    values: Values | Sequence[float] = "zero"
    """`zero`; `mean`, each channel's mean over the tokens of `reference` where it would act, the first token apart from
    the others and each listed position apart; or one number for each channel."""
    positions: Where | Sequence[int] = "first"
    """`first`: the first token. `massive`: every token at which one of the channels is massive. `later`: those but for
    the first. Or a list of positions, from 0."""
    least: float = 100.0
    """Absolute value above which a channel may be massive; Sun et al.'s bound, which says little of a small model."""
    times_median: float = 1000.0
    """How many times the median absolute channel of its token a channel must be to be massive; Sun et al.'s bound."""
    reference: Sequence[Sequence[int] | str] | None = None
    """Texts that `mean` averages over, as token ids or, for a model that brings its tokenizer, as text; read on
    entering, by the model without any intervention. The authors take 100 of RedPajama."""

    def __post_init__(self) -> None:
        try:
            channels = tuple(dict.fromkeys(map(int, self.channels)))
            values = self.values if isinstance(self.values, str) else tuple(map(float, self.values))
            positions = self.positions
            if not isinstance(positions, str):
                positions = tuple(sorted({int(position) for position in positions}))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"set_activations: channels, values and positions are lists of numbers: {error}"
            ) from error
        reference = self.reference
        if reference is not None:
            reference = tuple(text if isinstance(text, str) else tuple(map(int, text)) for text in reference)
        fields = (("channels", channels), ("values", values), ("positions", positions), ("reference", reference))
        for name, value in fields:
            object.__setattr__(self, name, value)
        for name, kinds in (("values", Values), ("positions", Where)):
            given = getattr(self, name)
            if isinstance(given, str) and given not in get_args(kinds):
                raise UsageError(
                    f"set_activations: {name} is {given!r}; expected {', '.join(get_args(kinds))}, or numbers"
                )
        if not channels or min(channels) < 0:
            raise UsageError(f"set_activations: channels are at least one number from 0, not {channels}")
        if isinstance(values, tuple) and (len(values) != len(channels) or not all(map(math.isfinite, values))):
            raise UsageError(f"set_activations: values are one finite number for each of {len(channels)} channels")
        if isinstance(positions, tuple) and (not positions or positions[0] < 0):
            raise UsageError(f"set_activations: positions are at least one number from 0, not {positions}")
        if self.values == "mean" and not any(reference or ()):
            raise UsageError("set_activations: values 'mean' need reference texts to average over")
        if not self.least >= 0 or not self.times_median > 0:
            raise UsageError("set_activations: least is 0 or more, and times_median above 0")

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`: a listed position must be one of the sample's."""
        if isinstance(self.positions, tuple) and self.positions[-1] >= len(sample):
            raise UsageError(
                f"set_activations: positions name {self.positions[-1]}, and {sample.name!r} has {len(sample)} tokens"
            )

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the channels of `model` are set."""
        reference = [token_ids(model, text, "set_activations", "reference") for text in self.reference or ()]
        return self._applied(transformers_model_of(model), reference)

    @contextmanager
    def _applied(self, model: PreTrainedModel, reference: Sequence[Sequence[int]]) -> Iterator[None]:
        layer = self._layer_of(model)
        values = self._means(model, layer, reference) if self.values == "mean" else self._given()

        def setting(hidden: Tensor, position: Tensor) -> Tensor:
            chosen = self._chosen(hidden, position)
            for place in position[chosen].tolist():
                key = place if place == 0 or isinstance(self.positions, tuple) else None
                if key not in values:
                    raise UsageError(
                        f"set_activations: reference has no massive activation "
                        f"{'at its first token' if key == 0 else 'after its first token'}, and what is read has one at "
                        f"position {place}"
                    )
                row = place - int(position[0])
                hidden[row, list(self.channels)] = values[key].to(hidden)
            return hidden

        with attached(model, tap()), _set(model, layer, setting):
            yield

    def _layer_of(self, model: PreTrainedModel) -> nn.Module:
        """Return the layer; raises `UsageError` where there is none, or it has not these channels."""
        attending = [each.module() for each in attention_layers(model).values()]
        recurring = [each.module() for each in recurrent_layers(model).values()]
        layers = decoder_layers(model, [each for each in (*attending, *recurring) if each is not None])
        if not 0 <= self.layer < len(layers):
            raise UsageError(
                f"set_activations: layer is {self.layer}, and {name_of(model)} has layers 0 to {len(layers) - 1}"
            )
        width = getattr(model.config.get_text_config(), "hidden_size", None)
        if width is not None and max(self.channels) >= width:
            raise UsageError(
                f"set_activations: channels name {max(self.channels)}, and the residual stream of {name_of(model)} has "
                f"{width} channels"
            )
        return layers[self.layer]

    def _chosen(self, hidden: Float[Tensor, "token channel"], position: Int[Tensor, "token"]) -> Bool[Tensor, "token"]:
        """Return at which of the tokens it acts."""
        if isinstance(self.positions, tuple):
            return torch.isin(position, torch.tensor(self.positions, device=position.device))
        if self.positions == "first":
            return position == 0
        size = hidden.abs().float()
        largest = size[:, list(self.channels)].amax(-1)
        massive = (largest > self.least) & (largest >= self.times_median * size.median(-1).values)
        massive = massive.to(position.device)
        return massive & (position > 0) if self.positions == "later" else massive

    def _given(self) -> dict[int | None, Tensor]:
        numbers = (0.0,) * len(self.channels) if isinstance(self.values, str) else self.values
        listed = self.positions if isinstance(self.positions, tuple) else ()
        return dict.fromkeys((None, 0, *listed), torch.tensor(numbers, dtype=torch.float64))

    @torch.no_grad()
    def _means(
        self, model: PreTrainedModel, layer: nn.Module, reference: Sequence[Sequence[int]]
    ) -> dict[int | None, Tensor]:
        """Return each channel's mean, by listed position, or for the first token and (None) for the others."""
        found: dict[int | None, list[Tensor]] = {}

        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = _hidden(output)[0]
            position = torch.arange(len(hidden))
            for place in position[self._chosen(hidden, position)].tolist():
                key = place if place == 0 or isinstance(self.positions, tuple) else None
                found.setdefault(key, []).append(hidden[place, list(self.channels)].double().cpu())

        handle = layer.register_forward_hook(look)
        try:
            with attached(model, tap(), alone=True):
                run(model, reference)
        finally:
            handle.remove()
        wanted = set(self.positions) if isinstance(self.positions, tuple) else set()
        if not found or wanted - set(found):
            where = f"positions {sorted(wanted - set(found)) or repr(self.positions)}"
            raise UsageError(f"set_activations: reference has no token at {where} to average over")
        return {place: torch.stack(rows).mean(0) for place, rows in found.items()}


@contextmanager
def _set(model: PreTrainedModel, layer: nn.Module, setting: _Setting) -> Iterator[None]:
    """Within the block what `layer` hands on goes through `setting`, after those that were set before.

    One hook serves them all, in front of those that read what the layer hands on.
    """

    def change(_module: nn.Module, _args: Any, output: Any) -> Any:
        facts = current_forward(model)
        if facts is None:
            return None
        before = _hidden(output)
        if before.ndim != 3 or before.shape[:2] != (facts.num_samples, facts.num_queries):
            raise NotReproducible(f"{name_of(model)}: a layer's output is not batch × token × channel")
        hidden = before.clone()
        for sample in range(facts.num_samples):
            first, stop = facts.queries_of(sample)
            start = facts.num_past + first - facts.ranges[sample][0]
            position = torch.arange(start, start + stop - first)
            for each in settings:
                hidden[sample, first:stop] = each(hidden[sample, first:stop], position)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    if layer in _active:
        settings, handle = _active[layer]
    else:
        settings, handle = [], layer.register_forward_hook(change, prepend=True)
        _active[layer] = settings, handle
    settings.append(setting)
    try:
        yield
    finally:
        settings.remove(setting)
        if not settings:
            handle.remove()
            del _active[layer]


def _hidden(output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(hidden, Tensor):
        raise NotReproducible("a layer's output is not batch × token × channel")
    return hidden
