"""The contract of a statistic: what it is called, what arrays it gives, how they are defined, computed and merged."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from probe import discovery
from probe.errors import UsageError

if TYPE_CHECKING:
    from probe.kernels.block import Block
    from probe.kernels.epilogue import Epilogue
    from probe.kernels.hidden_attention import HiddenRow
    from probe.kernels.keys import Keys
    from probe.kernels.normaliser import Normaliser
    from probe.kernels.recurrence import Recurrence
    from probe.kernels.tally import Tally

Kind = Literal["scan", "row", "key", "residual", "token", "recurrence"]
Merge = Literal["concatenate", "sum", "max", "argmax", "mean", "none"]


@dataclass(frozen=True)
class ArrayFacts:
    """What is known of one array of a statistic before anything is computed."""

    axes: tuple[str, ...]
    """Axes from the vocabulary; `layer` comes in front when the trace is written."""
    unit: str
    """Unit of the values; empty for a plain number."""
    merge: Merge = "concatenate"
    """How two samples' or chunks' parts combine. Along `query`, `token`, `row` and a `key_norm`'s `key` chunks are
    concatenated, and what two blocks of keys give to one query is summed; `max` takes the larger, `argmax` the position
    that goes with the larger value of the statistic's first array, of equals the lowest, `mean` the mean weighted by
    the statistic's counts; `none` does not merge, and is computed anew from what the statistic's tally adds up."""
    meaning: str = ""
    """One phrase, where the statistic's definition does not say what this array of it is."""


class Statistic:
    """A quantity of one layer: a small frozen dataclass whose fields are its parameters.

    A subclass has the name that requests and traces use, one file of that name in this folder, a docstring whose first
    paragraph defines it, the class attributes below, and the one method that its kind asks for: `per_query` and/or
    `blocked` (scan), `blocked` (row: its block holds whole rows), `of_keys` (key; `tally` where no array has an axis of
    keys), `of_tokens` (residual, token), one of `of_state`, `of_steps`, `of_row` (recurrence); and `reference` where it
    is computed from a call or a recurrence. Each but `of_state` gives a tensor for each suffix.
    """

    kind: ClassVar[Kind]
    """What it is computed from: `scan` every query's attention, `row` that of the decoding queries, `key` the keys and
    values, `residual` the residual stream, `token` the logits, `recurrence` the states of recurrent layers."""
    arrays: ClassVar[Mapping[str, ArrayFacts]]
    """Suffix of the array's name → its facts. The empty suffix comes first: that array is named by the key alone."""
    source: ClassVar[str]
    """Paper and section, or `this toolkit's own`."""

    needs_tokens: ClassVar[bool] = False
    """Whether its blocks must carry token ids."""

    needs_logit_direction: ClassVar[bool] = False
    """Whether its blocks must say what a head's output adds to an answer's logit. Its arrays are along rows, and are
    multiplied by the norms' scales at each row once these are known."""

    needs_rotary_pairs: ClassVar[bool] = False
    """Whether its calls must say which channels turn together."""

    rows_join: ClassVar[bool] = False
    """Of kind `row`: whether `blocked` may be given rows in stretches of keys, whose answers `join` brings together."""

    compares_positions: ClassVar[bool] = False
    """Whether it asks how far a key stands from the query, or whether tokens are the same: nothing that cross-attention
    can answer, whose queries and keys stand in two texts."""

    compares_layers: ClassVar[bool] = False
    """Whether it needs the keys of the attention layer before."""

    @classmethod
    def name(cls) -> str:
        """Return the name by which it is requested."""
        return cls.__name__

    @cached_property
    def key(self) -> str:
        """Name in a trace: the statistic's, then each parameter that is not at its default, in alphabetical order."""
        parts = [self.name()]
        for field in sorted(fields(self), key=lambda field: field.name):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                values = value if isinstance(value, tuple) else (value,)
                parts += [field.name, *(str(v).lower() for v in values)]
        return "_".join(parts)

    @property
    def definition(self) -> str:
        """The definition in words, with the parameters' values."""
        words = " ".join((inspect.getdoc(type(self)) or "").split("\n\n")[0].split())
        values = [f"{field.name} = {getattr(self, field.name)}" for field in fields(self)]  # type: ignore[arg-type]
        return f"{words} ({', '.join(values)})" if values else words

    def array_name(self, suffix: str) -> str:
        """Return the name in a trace of the array with this suffix."""
        return f"{self.key}_{suffix}" if suffix else self.key

    def reference(self, dense: Any) -> dict[str, Tensor]:
        """Return each array by its definition, in float64, from a whole call (`Dense`) or recurrence (`Stepwise`)."""
        raise NotImplementedError

    @property
    def reads_blocks(self) -> bool:
        """Whether probabilities must be computed for it."""
        return type(self).blocked is not Statistic.blocked

    @property
    def can_pool(self) -> bool:
        """Whether its arrays still say what they are for when positions are pooled."""
        return True

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the coordinate of an axis of its own, e.g. the distances of `offset`; None where it has none."""
        return None

    def covers(self, other: Statistic) -> bool:
        """Return whether its arrays hold all that another statistic's would, so that this one serves for both."""
        return False

    def wants(self, query_start: int) -> bool:
        """Return whether queries from this position on can still change the answer."""
        return True

    def per_query(self, normaliser: Normaliser) -> dict[str, Tensor]:
        """Return what follows from the normaliser alone, [head, query]."""
        return {}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        """Return what a block of queries and keys contributes; the arrays' axes and merge law say how it is added."""
        return {}

    def of_rows(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a row statistic's values, from what `blocked` gave over all keys."""
        return arrays

    def join(self, held: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what two stretches of keys give to the same queries, from what each gives, by the arrays' merge laws.

        Either may lack arrays, and neither is kept. Of equal values `argmax` has the lowest position, whichever stretch
        came first; a negative position is none.
        """
        joined = held | part
        main = next(iter(self.arrays))
        for suffix in held.keys() & part.keys():
            one, other, merge = held[suffix], part[suffix], self.arrays[suffix].merge
            if merge == "argmax":
                lower = (other >= 0) & ((other < one) | (one < 0))
                better = (part[main] > held[main]) | ((part[main] == held[main]) & lower)
                joined[suffix] = torch.where(better, other, one)
            else:
                joined[suffix] = torch.maximum(one, other) if merge == "max" else one + other
        return joined

    def on_triton(self) -> tuple[Epilogue, ...]:
        """Return what it does inside the Triton scan; nothing leaves it to the blocked scan, on that device too.

        Several epilogues, for different distances say, each give a part of its arrays, which are summed.
        """
        return ()

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        """Return the values of these keys, [kv_head, key]; of the last of them alone, where the first have none, and
        nothing, where none ever will."""
        return {}

    def of_tokens(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Return the values of a chunk of tokens, [token]."""
        return {}

    def of_state(self, state: Tensor) -> Tensor:
        """Return one number for each head, from a recurrent layer's state [state_head, state, channel]."""
        raise NotImplementedError

    def of_steps(self, recurrence: Recurrence) -> dict[str, Tensor]:
        """Return what each token's step through a recurrent layer has, [state_head, token]."""
        return {}

    def of_row(self, row: HiddenRow) -> dict[str, Tensor]:
        """Return what a decoding token's hidden attention has, [state_head] or [state_head, key]."""
        return {}

    def tally(self) -> Tally:
        """Return the accumulator of whatever has no `query`, `token` or `row` axis."""
        from probe.kernels.tally import Tally

        return Tally(self)


def names() -> list[str]:
    """Return the names of all statistics, this toolkit's and those of installed packages."""
    return [name for name in discovery.names("kernels") if _is_statistic(discovery.get("kernels", name))]


def parse(request: Any) -> Statistic:
    """Return the statistic that a request names: `"entropy"`, `{"received_mass": {"horizon": 64}}`, or one itself.

    Raises `UsageError`, naming what exists, for an unknown name or parameter, or a value of the wrong type.
    """
    if isinstance(request, Statistic):
        return request
    if isinstance(request, str):
        name, parameters = request, None
    elif isinstance(request, Mapping) and len(request) == 1:
        name, parameters = next(iter(request.items()))
    else:
        raise UsageError(f"a statistic is requested as a name or as {{name: {{parameter: value}}}}, not {request!r}")
    statistic = _find(name)
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise UsageError(f"the parameters of {name} are a mapping, not {parameters!r}")
    hints = get_type_hints(statistic)
    known = [field.name for field in fields(statistic)]  # type: ignore[arg-type]
    values = {}
    for parameter, value in parameters.items():
        if parameter not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{name} has no parameter {parameter!r}; {has}")
        value = tuple(value) if isinstance(value, list) else value
        try:
            values[parameter] = TypeAdapter(hints[parameter]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UsageError(f"{name}: {parameter} = {value!r}: {error.errors()[0]['msg']}") from None
    return statistic(**values)


@cache
def _find(name: str) -> type[Statistic]:
    statistic = discovery.get("kernels", name)
    if not _is_statistic(statistic):
        raise UsageError(f"there is no statistic {name!r}; there are {', '.join(names())}")
    found: type[Statistic] = statistic
    return found


def _is_statistic(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Statistic) and value is not Statistic
