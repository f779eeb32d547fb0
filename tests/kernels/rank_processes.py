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

from probe.errors import RankLost
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


def leave_early(ring: Ring, folder: Path, lost: int) -> None:
    """Have one rank end before the second call; the others write what they say of it to `said-<rank>`."""
    call = Call(0, torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 2, 4), 1.0, query_start=2 * ring.rank)
    call = replace(call, key_start=2 * ring.rank)
    scan = RankedScan(["entropy"], ring)
    scan.update(call)
    if ring.rank == lost:
        os._exit(0)
    try:
        scan.update(replace(call, layer=1))
    except RankLost as error:
        (folder / f"said-{ring.rank}").write_text(str(error), encoding="utf-8")
    os._exit(0)


def keep_waiting(ring: Ring, folder: Path, silent: int) -> None:
    """Have one rank bring nothing until the others have given it up."""
    store, ring.timeout = dist.FileStore(f"{folder}/given-up", 2), 1.0
    call = Call(0, torch.ones(1, 1, 4), torch.ones(1, 1, 4), torch.ones(1, 1, 4), 1.0, query_start=ring.rank)
    if ring.rank != silent:
        try:
            RankedScan(["entropy"], ring).update(replace(call, key_start=ring.rank))
        except RankLost as error:
            (folder / f"said-{ring.rank}").write_text(str(error), encoding="utf-8")
        store.set("given up", "1")
    store.wait(["given up"], timedelta(seconds=60))
    os._exit(0)


def disagree(ring: Ring, folder: Path) -> None:
    """Bring calls that do not make one together, and write what each rank says."""
    one = torch.ones(1, 2, 4)
    call = Call(0, one, one, one, 1.0, query_start=2 * ring.rank, key_start=2 * ring.rank)
    gap = 3 * ring.rank
    wrong = {
        "window": replace(call, window=2 + ring.rank),
        "gap": replace(call, query_start=gap, key_start=gap),
        "queries": replace(call, query_start=7),
        "rows": replace(call, phase="decode"),
    }
    said = []
    for name, each in wrong.items():
        try:
            RankedScan(["entropy"], ring).update(each)
        except ValueError as error:
            said.append(f"{name}: {error}")
    (folder / f"said-{ring.rank}").write_text("\n".join(said), encoding="utf-8")


def count_traffic(ring: Ring, folder: Path, length: int, masks: list[tuple[int | None, bool]]) -> None:
    """Write how many bytes of keys and values this rank has sent for a call of each window and causality."""
    own, sent = length // ring.size, []
    key = torch.ones(2, own, 8, dtype=torch.bfloat16)
    for window, causal in masks:
        before = ring.bytes_sent
        call = Call(0, key, key, key, 1.0, own * ring.rank, own * ring.rank, window=window, causal=causal)
        RankedScan(["entropy"], ring).update(call)
        sent.append(ring.bytes_sent - before)
    (folder / f"sent-{ring.rank}").write_text(" ".join(map(str, sent)), encoding="utf-8")
