"""Read a prompt with several processes, each of which has a stretch of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probe.capture import CHUNK_TOKENS, Prompt, Request, _traced, as_sample, comparison, default_statistics, expand
from probe.hooks.loading.backend import load
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.models.over_ranks import OverRanks
from probe.kernels.engine import EngineName
from probe.kernels.ring import Ring
from probe.reader import Reading
from probe.requested import all_requested
from probe.storage.saved_trace import saved_trace, write_trace_json
from probe.storage.store import MemoryStore, RunStore
from probe.storage.trace_store import Trace
from probe.storage.trace_store import open as open_trace


def trace_over_ranks(
    model: HuggingFaceModel | Any,
    x: Prompt,
    *,
    statistics: Request | Sequence[Request] | None = None,
    max_new_tokens: int | None = None,
    pool_tokens: int | str | None = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    private: bool = False,
    scan: EngineName = "auto",
    deterministic: bool = False,
    check: bool = True,
    timeout: float = 1800.0,
) -> Trace | None:
    """Read a prompt with the ranks of `torch.distributed`, and return the trace at rank 0, None at the others.

    Every rank calls it, with its own copy of the model and the whole prompt, after `init_process_group` (with
    `cpu:gloo,cuda:nccl` where there are GPUs). Each puts a stretch of consecutive tokens through; keys and values go
    around the ranks, and statistics merge by their own laws. The other parameters are those of `probe.trace`; `timeout`
    is how many seconds a rank waits for another.

    Raises UsageError where torch.distributed has not been started and for statistics that are not read over ranks, by
    name; NotReproducible for a model that is not spread over ranks; RankLost where a rank is gone or silent, with its
    number.
    """
    ring = Ring(timeout=timeout)
    loaded = model if isinstance(model, HuggingFaceModel) else load(model)
    sample = as_sample(loaded, x)
    asked: Sequence[Any] = default_statistics(loaded)
    if statistics is not None:
        asked = statistics if isinstance(statistics, list | tuple) else [statistics]
    requests = all_requested(list(expand(asked)))
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pool_tokens": pool_tokens,
        "chunk_tokens": CHUNK_TOKENS,
        "private": private,
        "reading": Reading(scan, deterministic),
    }
    compared = comparison(loaded, requests, check=check)
    spread = OverRanks(loaded, ring)
    if ring.rank or out is None:
        found = _traced(spread, sample, requests, MemoryStore(), options, compared)
        return None if ring.rank else found
    with saved_trace(out, overwrite=overwrite) as folder, RunStore(folder) as store:
        unit = _traced(spread, sample, requests, store, options, compared).unit
        write_trace_json(folder, unit)
    opened = open_trace(out)
    assert isinstance(opened, Trace)
    return opened
