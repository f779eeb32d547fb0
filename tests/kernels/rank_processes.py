"""Runs pieces of a test in processes that make up the ranks of `torch.distributed`, over gloo and a file."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
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
from probe.kernels.ranked_scan import RankedScan, merges
from probe.kernels.ring import Ring
from probe.kernels.statistic import parse
from tests.kernels.conftest import REQUESTS, Attention, Shape, make_call, make_spans

ROWS = 2
"""Queries of decoding at the end of each causal prompt."""


def run(size: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(ring, folder, *arguments)` on each of `size` ranks; an exception of one is raised here."""
    # The server imports them once; what is forked from it has no threads.
    multiprocessing.set_forkserver_preload([__name__, "probe.capture"])
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


def scan_prompts(ring: Ring, folder: Path, prompts: list[tuple[Shape, int]]) -> None:
    """Scan each prompt, a shape and a length, over the ranks; rank 0 writes its arrays to `<number>.npz`."""
    for number, (shape, length) in enumerate(prompts):
        scan = RankedScan(mergeable(), ring, spans=make_spans(length))
        for call, cut in cut_up(make_call(shape, length, seed=number), ring.size):
            scan.update(stretch(call, cut[ring.rank], cut[ring.rank + 1]))
        results = {array: result.values.numpy() for array, result in scan.finish().items()}
        assert ring.rank == 0 or not results
        if ring.rank == 0:
            np.savez(folder / f"{number}.npz", **results)


def mergeable() -> list[Any]:
    """Return every request whose statistic merges."""
    return [request for request in REQUESTS if merges(parse(request))]


def cut_up(call: Call, size: int) -> Iterator[tuple[Call, list[int]]]:
    """Yield the prompt, then `ROWS` decoded tokens, each with where it is cut; bidirectional calls have no tokens.

    Each stretch of the prompt is about half as long as the one before; short prompts leave the last ranks without.
    """
    rows = min(ROWS, call.num_keys) if call.causal else 0
    cuts = [0]
    for _ in range(size - 1):
        cuts.append(cuts[-1] + (call.num_keys - rows - cuts[-1] + 1) // 2)
    cuts.append(call.num_keys - rows)
    if cuts[-1]:
        prompt = Attention.cut(call, 0, cuts[-1], phase="prefill") if call.causal else replace(call, phase="prefill")
        yield prompt, cuts
    owner = max((rank for rank in range(size) if cuts[rank] < cuts[rank + 1]), default=0)
    for done in range(cuts[-1], call.num_keys):
        yield Attention.cut(call, done, done + 1), [*cuts[: owner + 1], *[done + 1] * (size - owner)]


def stretch(call: Call, first: int, stop: int) -> Call:
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
        scan = RankedScan(["received_mass"], ring)
        scan.update(call)
        sent.append(ring.bytes_sent - before)
        # No rank keeps what keys of another one have received.
        held = scan._tallies["received_mass"].state()
        assert int(held["origin"]) == own * ring.rank
        assert held["array "].shape == (2, own)
    (folder / f"sent-{ring.rank}").write_text(" ".join(map(str, sent)), encoding="utf-8")
