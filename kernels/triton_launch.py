"""How one call is handed to the Triton kernels: cut into programs, with the epilogues composed into passes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.epilogue import Epilogue, Layout, Shape
from probe.kernels.normaliser import Normaliser, found, given
from probe.kernels.statistic import Statistic
from probe.kernels.triton_kernel import Features, normalise, scan
from probe.kernels.visibility import Visibility
from probe.kernels.walk import token_ids

MAX_HEADS = 4
"""Most query heads that share a program, and with it the loads of their keys."""


@dataclass(frozen=True)
class Part:
    """One epilogue in a pass."""

    statistic: str
    """Key of the statistic."""
    epilogue: Epilogue
    """Its epilogue."""
    memory: tuple[Tensor | int, ...]
    """What the epilogue allocated."""


@dataclass(frozen=True)
class Pass:
    """Epilogues that one launch runs, over all keys or over those at some distances."""

    parts: tuple[Part, ...]
    """The epilogues."""
    distances: tuple[int, int] | None
    """As in `Epilogue`."""


class Launch:
    """The kernels' arguments for one call."""

    def __init__(
        self,
        call: Call,
        statistics: Sequence[Statistic],
        query_block: int | None = None,
        key_block: int | None = None,
        architecture: int | None = None,
    ) -> None:
        if call.query.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(call.query.device)
            architecture = 10 * major + minor
        self.call = call
        self.visibility = Visibility.of(call)
        self.epilogues = [(s.key, epilogue) for s in statistics for epilogue in s.on_triton()]
        widest = [epilogue.most_keys(call) for _, epilogue in self.epilogues if epilogue.most_keys is not None]
        self.shape = choose_shape(call, query_block, key_block, architecture, most_keys=min(widest, default=None))
        queries = int(self.shape.QUERIES)
        num_blocks = (call.query_start + call.num_queries - 1) // queries - call.query_start // queries + 1
        self.grid = num_blocks, call.num_heads // int(self.shape.HEADS)
        device = call.query.device
        *self.bounds, self.num_visible = self.visibility.bounds(device)
        slope, bias, visible = call.alibi_slope, call.distance_bias, call.key_visible
        # What a kernel does not read may be any pointer.
        self.slope = self.bounds[0] if slope is None else slope.to(device, torch.float32).contiguous()
        self.bias = self.bounds[0] if bias is None else bias.to(device, torch.float32).contiguous()
        self.visible = self.bounds[0] if visible is None else visible.to(device, torch.int8).contiguous()

    def normaliser(self) -> Normaliser:
        """Return the normaliser: what the call hands over, or what a first pass over the scores finds."""
        call = self.call
        if call.log_sum_exp is not None:
            return given(call, call.query_start, call.query_start + call.num_queries, self.num_visible)
        maximum = torch.empty((call.num_heads, call.num_queries), device=call.query.device)
        log_excess = torch.empty_like(maximum)
        arguments, options = self.normalise_arguments(maximum, log_excess)
        normalise[self.grid](*arguments, **options)
        return found(call, call.query_start, maximum, log_excess, self.num_visible)

    def layout(self, finite: Tensor, tokens: Tensor | None, tokens_start: int, *, deterministic: bool) -> Layout:
        """Return what epilogues are told; `finite` is False for heads with a logit that is not, [head]."""
        call = self.call
        queries = call.query_start, call.query_start + call.num_queries
        keys = call.key_start, call.key_start + call.num_keys

        def ids(start: int, stop: int) -> Tensor | None:
            found_ids = token_ids(tokens, tokens_start, start, stop)
            return None if found_ids is None else found_ids.to(call.query.device, torch.int32).contiguous()

        return Layout(
            call=call,
            shape=self.shape,
            num_blocks=self.grid[0],
            deterministic=deterministic,
            finite=finite,
            visibility=self.visibility,
            query_token=ids(*queries),
            key_token=ids(*keys),
            previous_token=ids(keys[0] - 1, keys[1] - 1),
        )

    def passes(self, layout: Layout) -> list[Pass]:
        """Sort the epilogues into launches: those of nearby distances share one."""
        groups: dict[int | None, list[tuple[str, Epilogue]]] = {}
        for key, epilogue in self.epilogues:
            low = None if epilogue.distances is None else epilogue.distances[0]
            groups.setdefault(low, []).append((key, epilogue))
        return [
            Pass(
                tuple(Part(key, epilogue, epilogue.memory(layout)) for key, epilogue in group),
                None if low is None else (low, max(e.distances[1] for _, e in group if e.distances)),
            )
            for low, group in groups.items()
        ]

    def scan(self, pass_: Pass, layout: Layout, normaliser: Normaliser) -> None:
        """Run one pass; its parts' memory is written."""
        shift, log_excess = normaliser.shift.contiguous(), normaliser.log_excess.contiguous()
        arguments, options = self.scan_arguments(pass_, layout, shift, log_excess)
        scan[self.grid](*arguments, **options)

    def normalise_arguments(self, maximum: Tensor, log_excess: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments and options of `normalise`."""
        call = self.call
        pointers = call.query, call.key, *self.bounds, self.slope, self.bias, self.visible, maximum, log_excess
        return (*pointers, *self._numbers()), self._options(self._leading())

    def scan_arguments(
        self, pass_: Pass, layout: Layout, shift: Tensor, log_excess: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments and options of `scan`."""
        call, bounds = self.call, self._near(pass_.distances)
        pointers = call.query, call.key, *bounds, self.slope, self.bias, self.visible, shift, log_excess
        epilogues = [part.epilogue for part in pass_.parts]
        options = self._options(pass_.distances is not None or self._leading())
        if pass_.distances is not None:
            # What skews a tile holds it twice.
            heads, queries, keys = self.shape
            options["SHAPE"] = Shape(heads, queries, tl.constexpr(max(16, int(keys) // 2)))
        options |= {
            "STARTS": tuple(e.start for e in epilogues),
            "UPDATES": tuple(e.update for e in epilogues),
            "FINISHES": tuple(e.finish for e in epilogues),
            "CONSTANTS": tuple(tuple(map(tl.constexpr, e.constants(layout))) for e in epilogues),
            "VERSION": _version([f for e in epilogues for f in (e.start, e.update, e.finish)]),
        }
        return (*pointers, tuple(part.memory for part in pass_.parts), *self._numbers()), options

    def _near(self, distances: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Return the bounds of what each query sees, narrowed to distances from it."""
        first, stop = self.bounds
        if distances is None:
            return first, stop
        call = self.call
        query = torch.arange(call.query_start, call.query_start + call.num_queries, device=first.device)
        low, high = distances
        first = torch.maximum(first, query - high + 1).clamp_max(call.key_start + call.num_keys)
        stop = torch.maximum(torch.minimum(stop, query - low + 1), first)
        return first.int(), stop.int()

    def _numbers(self) -> tuple[float | int, ...]:
        call = self.call
        return (
            float(call.scale), float(call.softcap or 0.0), call.distance_bias_start,
            0 if call.distance_bias is None else call.distance_bias.shape[1],
            call.query_start, call.num_queries, call.num_heads, call.key_start, call.num_keys,
            *call.query.stride(), *call.key.stride(),
        )  # fmt: skip

    def _leading(self) -> bool:
        call = self.call
        first = int(self.visibility.first[-1])
        return call.key_start % int(self.shape.KEYS) != 0 or first > call.key_start

    def _options(self, leading: bool) -> dict[str, Any]:
        call = self.call
        channels = call.query.shape[-1]
        width = max(16, 1 << (channels.bit_length() - 1))
        rest = 0 if width >= channels else max(16, 1 << (channels - width - 1).bit_length())
        values = (
            call.num_heads // call.num_kv_heads, channels, width, rest, call.softcap is not None,
            call.alibi_slope is not None, call.distance_bias is not None, call.key_visible is not None, leading,
            interpreted() and call.query.dtype == torch.bfloat16,
        )  # fmt: skip
        bias = call.distance_bias
        return {
            "FEATURES": Features(*(tl.constexpr(int(value)) for value in values)),
            "SHAPE": self.shape,
            "num_warps": 8 if int(self.shape.HEADS) * int(self.shape.QUERIES) >= (128 if bias is None else 64) else 4,
            "num_stages": 2,
            # Said aloud, since Triton 3.10 changes what is taken for granted.
            "enable_fp_fusion": True,
        }


def choose_shape(
    call: Call,
    query_block: int | None = None,
    key_block: int | None = None,
    architecture: int | None = None,
    most_keys: int | None = None,
) -> Shape:
    """Return how much of a call one program takes: as much as its registers hold beside every statistic's state.

    Found by compiling for compute capability 8.0, 9.0 and 10.0 (see `triton_resources`), not yet by timing.
    """
    channels = call.query.shape[-1]
    extra = call.softcap, call.alibi_slope, call.key_visible
    if call.query.element_size() > 2:
        rows, keys = 32, 16
    elif channels > 128:
        rows, keys = 64, 32
    elif architecture == 90 and channels in (64, 128) and all(each is None for each in extra):
        rows, keys = 128, 64
    else:
        rows, keys = 128, 32
    if call.distance_bias is not None:
        # Where each score's bias is looked up takes registers too.
        rows, keys = min(rows, 64 if channels <= 128 else 32), 16
    # The largest power of two that divides the group: no row is wasted on a head that is not there.
    group = call.num_heads // call.num_kv_heads
    heads = min(group & -group, MAX_HEADS)
    queries = rows // heads if query_block is None else max(query_block, 16 // heads)
    keys = min(keys if key_block is None else key_block, most_keys or keys)
    keys = max(keys, 16)
    return Shape(tl.constexpr(heads), tl.constexpr(queries), tl.constexpr(keys))


def interpreted() -> bool:
    """Return whether the kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _version(functions: Sequence[Any]) -> int:
    """Return a number that changes with the source of the epilogues.

    Triton keeps compiled kernels on disk under a key that holds the names of functions passed as constants, not their
    sources: without this an edited epilogue, or an upgraded package, would silently run as it was before.
    """
    keys = "".join(getattr(function, "cache_key", "") for function in functions)
    return int.from_bytes(hashlib.sha256(keys.encode()).digest()[:6], "big")
