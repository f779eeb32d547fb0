"""Runs pieces of a test in processes that make up the ranks of `torch.distributed`, over gloo and a file."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from probe.kernels.call import Call
from probe.kernels.ranked_scan import RankedScan
from probe.kernels.ring import Ring

Cases = dict[str, tuple[list[Call], list[list[int]], list[Any], dict[str, Any]]]
"""Name → the calls of the whole prompt, one after the other, where each is cut, the request, and `Scan`'s options."""


def run(size: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(ring, folder, *arguments)` on each of `size` ranks; an exception of one is raised here."""
    # The server imports torch once; what is forked from it has no threads.
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        _rank, (size, str(folder), work, arguments), nprocs=size, start_method="forkserver"
    )


def _rank(rank: int, size: int, folder: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=300))
    work(Ring(timeout=120), Path(folder), *arguments)
    dist.destroy_process_group()


def scan_cases(ring: Ring, folder: Path, cases: Cases) -> None:
    """Scan each case over the ranks; rank 0 writes its arrays to `<case>.npz`."""
    for name, (calls, cuts, request, options) in cases.items():
        scan = RankedScan(request, ring, **options)
        for call, cut in zip(calls, cuts, strict=True):
            scan.update(stretch(call, cut[ring.rank], cut[ring.rank + 1], last=ring.rank + 1 == ring.size))
        results = {array: result.values.numpy() for array, result in scan.finish().items()}
        assert (ring.rank == 0) or not results
        if ring.rank == 0:
            np.savez(folder / f"{name}.npz", **results)


def stretch(call: Call, first: int, stop: int, *, last: bool) -> Call:
    """Return the keys `[first, stop)` of a call, and those of its queries that stand there."""
    offset = call.query_start - call.key_start
    queries = slice(max(first - offset, 0), max(stop - offset, 0))
    keys = slice(first, stop)

    def cut(values: torch.Tensor | None, where: slice, axis: int) -> torch.Tensor | None:
        return None if values is None else values[(slice(None),) * axis + (where,)]

    return replace(
        call,
        query=cut(call.query, queries, 1),
        key=cut(call.key, keys, 1),
        value=cut(call.value, keys, 1),
        query_start=call.query_start + queries.start,
        key_start=call.key_start + first,
        tokens=cut(call.tokens, keys, 0),
        document=cut(call.document, keys, 0),
        key_visible=cut(call.key_visible, keys, 0),
        logit_direction=cut(call.logit_direction, queries, 1),
        log_sum_exp=cut(call.log_sum_exp, queries, 1),
    )
