"""What is known of the recurrent layers of a model: which modules they are, and how their recurrence is read."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.attention.interface import text_decoder
from probe.kernels.recurrence import Recurrence

_OF_ATTENTION = {"ALL_ATTENTION_FUNCTIONS", "eager_attention_forward", "scaled_dot_product_attention"}
"""Names of which one stands in the forward of whatever attends."""


@dataclass(frozen=True, eq=False)
class function_call:
    """A function that a module called while its forward ran."""

    name: str
    """The function's name."""
    arguments: Mapping[str, Any]
    """What it was given, by name, defaults included; what it changes in place as it was before."""
    changed: Mapping[str, Any]
    """What it changed in place, as it is now."""
    output: Any
    """What it returned."""
    recurrences: Mapping[int, Sequence[Recurrence]] | None = None
    """What it put through as interventions have it, by sample, in parts of one phase each; None where they changed
    nothing."""


@dataclass(eq=False)
class mixer_forward:
    """One forward of a recurrent module, as far as it was watched."""

    given: Mapping[str, Any]
    """The forward's arguments by name."""
    before: Any = None
    """What `RecurrentFamily.before` returned."""
    calls: list[function_call] = field(default_factory=list)
    """The family's functions that were called, in order."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """What went into each of the family's `inner` modules."""
    output: Any = None
    """What the forward returned."""


@dataclass(frozen=True, eq=False)
class scanned:
    """Consecutive tokens of all samples going through a recurrence; the letters are those of `Recurrence`."""

    query: Float[Tensor, "batch token group state"]
    """q."""
    key: Float[Tensor, "batch token group state"]
    """k."""
    value: Float[Tensor, "batch token state_head channel"]
    """v."""
    gate: Float[Tensor, "batch token state_head #channel"]
    """g."""
    log_decay: Float[Tensor, "batch token state_head #state #channel"]
    """log a, less its rate."""
    output: Float[Tensor, "batch token state_head channel"]
    """What the model made of it: (y + skip · v) · output_gate."""
    state_before: Float[Tensor, "batch state_head state channel"] | None
    """The state that it went on from; None where it began with none."""
    state_after: Float[Tensor, "batch state_head state channel"] | None
    """The state that the model goes on from; None where it keeps none."""
    rate: Float[Tensor, "state_head #state #channel"] | None = None
    """Factor of log a."""
    delta: bool = False
    """Whether the delta rule holds."""
    read_gate: Float[Tensor, "batch token state_head #channel"] | None = None
    """r."""
    bonus: Float[Tensor, "batch token state_head #channel"] | None = None
    """Weight of the token's own value."""
    skip: Float[Tensor, "state_head #channel"] | None = None
    """D."""
    output_gate: Float[Tensor, "batch token state_head channel"] | None = None
    """What the output was multiplied with."""

    @property
    def state_dtype(self) -> torch.dtype:
        """What a state is in that the model did not hold before."""
        return torch.promote_types(self.value.dtype, torch.float32)


class RecurrentFamily:
    """One kind of recurrent module: derive from it, in a file of the subclass's own name in `recurrent_layers`.

    It is told by what the module has, not by a model's name, so that a model that nobody has tried is read as well;
    what is read is held against the model's own state and output every time (see `recurrence_switch`).
    """

    functions: ClassVar[tuple[str, ...]] = ()
    """Functions of the module's source file that compute the recurrence, by the names by which its forward calls
    them."""
    in_place: ClassVar[tuple[str, ...]] = ()
    """Arguments of these functions that they change, or that the module changes before its forward ends: states."""
    inner: ClassVar[tuple[str, ...]] = ()
    """Attributes of the module that are modules whose input is wanted."""

    def recognises(self, module: nn.Module) -> bool:
        """Return whether a module is of this kind: by default, whether its forward calls one of the functions."""
        return not _names_in_forward(module).isdisjoint(self.functions)

    def before(self, module: nn.Module, given: Mapping[str, Any]) -> Any:
        """Return what must be remembered of the module before its forward."""
        return None

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Return what went through the recurrence in a forward: several parts where it did in several.

        Raises `NotReproducible` for what cannot be read.
        """
        raise NotImplementedError

    def scanned_by(self, call: function_call) -> scanned:
        """Return what one call put through, with the function's own output; for kinds that can be changed."""
        raise NotImplementedError

    def instead(
        self,
        call: function_call,
        output: Float[Tensor, "batch token state_head channel"],
        state: Float[Tensor, "batch state_head state channel"],
    ) -> Any:
        """Return what the function shall have returned, the skip and the gate included, with `state` as its last.

        Where the function writes its state in place it is written there.
        """
        raise NotImplementedError

    def why_unchangeable(self, module: nn.Module) -> str:
        """Say why interventions cannot change its recurrence; empty where they can."""
        _ = module
        return "a recurrence of this kind is read and not changed"


@dataclass(frozen=True, eq=False)
class recurrent_layer:
    """One layer that recurs."""

    module: weakref.ReferenceType[nn.Module]
    """The recurrent module, held weakly."""
    family: RecurrentFamily
    """Its kind."""


def recurrent_layers(model: PreTrainedModel) -> dict[int, recurrent_layer]:
    """Return the recurrent layers of a model's text decoder of which the kind is known, by index."""
    found: dict[int, recurrent_layer] = {}
    for path, module in text_decoder(model).named_modules():
        for family in families():
            if family.recognises(module):
                found[_index(path, module)] = recurrent_layer(weakref.ref(module), family)
    return dict(sorted(found.items()))


def unknown_recurrences(model: PreTrainedModel) -> dict[int, str]:
    """Return the layers that keep a recurrent state of a kind that is not known, with what their modules are called.

    A layer with a short convolution alone (LFM2's) keeps its last inputs and no such state.
    """
    known = {id(layer.module()) for layer in recurrent_layers(model).values()}
    return {
        _index(path, module): type(module).__name__
        for path, module in text_decoder(model).named_modules()
        if id(module) not in known and "get_recurrent_state" in _names_in_forward(module)
    }


def kinds_of_layers(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return the recurrent layers by kind, those of an unknown one by their module's name, as JSON values."""
    found: dict[str, list[int]] = {}
    for index, layer in recurrent_layers(model).items():
        found.setdefault(type(layer.family).__name__, []).append(index)
    for index, name in unknown_recurrences(model).items():
        found.setdefault(f"unknown: {name}", []).append(index)
    return found


def without_known_recurrence(model: PreTrainedModel) -> str:
    """Say, of a model none of whose recurrent layers is of a known kind, what it has instead; empty for nothing."""
    if unknown := unknown_recurrences(model):
        layer, kind = next(iter(unknown.items()))
        return f"layer {layer} ({kind}) keeps a recurrent state of a kind that is not known"
    for module in text_decoder(model).modules():
        if "update_conv_state" in _names_in_forward(module):
            return f"its {type(module).__name__} is a short convolution, which keeps its last inputs and no such state"
    return ""


def recurs_everywhere(model: PreTrainedModel) -> bool:
    """Return whether every layer is recurrent and of a known kind, so that there is no attention to be seen."""
    layers = recurrent_layers(model)
    if set(layers) != set(range(int(model.config.get_text_config().num_hidden_layers))):
        return False
    # Falcon-H1 attends in the layers that recur.
    return not any(_names_in_forward(module) & _OF_ATTENTION for module in _others(model, layers))


@functools.cache
def families() -> tuple[RecurrentFamily, ...]:
    """Return the known kinds: a scan of the folder `recurrent_layers`."""
    found = []
    for path in sorted(Path(__file__).parents[1].joinpath("recurrent_layers").glob("*.py")):
        if not path.stem.startswith("_"):
            module = importlib.import_module(f"probe.hooks.recurrent_layers.{path.stem}")
            found.append(getattr(module, path.stem)())
    return tuple(found)


def _names_in_forward(module: nn.Module) -> set[str]:
    """Return the names of globals and attributes that the source of a module's forward uses."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


def _others(model: PreTrainedModel, layers: Mapping[int, recurrent_layer]) -> list[nn.Module]:
    recurrent = {id(each) for layer in layers.values() if (mixer := layer.module()) for each in mixer.modules()}
    return [module for module in text_decoder(model).modules() if id(module) not in recurrent]


def _index(path: str, module: nn.Module) -> int:
    for name in ("layer_idx", "layer_id"):
        if isinstance(index := getattr(module, name, None), int):
            return index
    number = re.search(r"\d+", path)
    return int(number.group()) if number else 0
