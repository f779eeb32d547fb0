"""What takes part where attention happens: a reader of calls, or an intervention."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.hooks.sequence.forward_facts import Part, forward_facts
from probe.kernels.call import Call


@dataclass(frozen=True, eq=False)
class site:
    """Where attention is happening: one layer of one forward."""

    layer: int
    """The layer's index, as the model itself counts its layers."""
    module: nn.Module
    """The attention module."""
    forward: forward_facts
    """The forward that this is part of."""
    causal: bool
    """Whether keys after the query are hidden."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key-value heads."""
    head_dim: int
    """Width of queries and keys."""
    value_dim: int
    """Width of values, and of a head's output."""

    @property
    def part(self) -> Part:
        """Whose attention it is, as in `Call`."""
        return self.forward.part

    def decode_rows(self) -> Bool[Tensor, "batch query"]:
        """True at the rows whose phase is `decode`."""
        return self.forward.decode_rows(self.causal)


class tap:
    """What is done where attention happens: override the methods that are wanted.

    Taps that change something act in the order in which they were attached: all of them on the query before the
    attention product, then all on the call, then all on the output. `call` sees calls as all of them left them.
    """

    part: Part | None = "self"
    """Which attention of an encoder-decoder it takes part in; None for all. Other models have `self` alone."""
    wants_calls = False
    """Whether `call` is to be called; each call is then verified."""
    changes_calls = False
    """Whether `change_call` is to be called; each call is verified before, a long one by its last rows."""

    def change_query(self, here: site, query: Float[Tensor, "batch head query channel"]) -> Tensor:
        """Return the queries that attention shall use; the given ones must not be written to."""
        return query

    def changes_layer(self, layer: int) -> bool:
        """Whether `change_call` may change calls of this layer."""
        return True

    def change_call(self, here: site, sample: int, call: Call) -> Call:
        """Return one sample's call as attention shall happen; the very same object where nothing changes.

        The call has been verified with the model's own attention, and is cut where its phase changes. Where it comes
        back changed, its output is computed anew (see `probe.kernels.attention_output`) and takes the place of the
        model's own. It is asked once for each call.
        """
        return call

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        """Return the heads' outputs that the model shall go on with; the given ones must not be written to."""
        return output

    def call(self, sample: int, call: Call) -> None:
        """Take one sample's call."""
