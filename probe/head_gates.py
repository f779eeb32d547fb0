"""Which key-value heads need their whole cache, in the form that DuoAttention and kvpress read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.copying import group_size, read, success
from probe.errors import NotAvailable, UsageError
from probe.intervals import by_cluster
from probe.selection import LeftOut, answered, has_top_keys, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Pooling = Literal["max", "mean"]
SINK_SIZE: Final = 64
"""First tokens that a streaming head keeps, as DuoAttention's demonstration deploys it."""
RECENT_SIZE: Final = 256
"""Last tokens that a streaming head keeps, as DuoAttention's demonstration deploys it."""


def head_gates(run: Run | Trace | Iterable[Trace], *, pooling: Pooling = "max") -> tuple[NDArray[np.float64], int]:
    """Return every key-value head's copying score, `[layer kv_head]` from 0 to 1, and from how many prompts.

    The score is that of `retrieval_heads` (Wu et al. 2024, arXiv 2404.15574), over all baseline prompts answered right,
    pooled over the query heads that share the key-value head: a cache that one of them needs must stay, hence `max`. It
    stands in for the gate that DuoAttention (arXiv 2410.10819) trains; that is this toolkit's own. Raises NotAvailable
    where no prompt was answered right or its attention was not captured, UsageError where layers have unlike numbers
    of heads or traces do not say how many key-value heads there are.
    """
    if pooling not in ("max", "mean"):
        raise UsageError(f"pooling {pooling!r}: expected `max` or `mean`")
    left_out = LeftOut()
    readings, groups = [], set()
    for trace, outcome in answered(selected(run), left_out):
        if not has_top_keys(trace):
            left_out.add("the largest attention (top_keys) was not captured")
        elif not success(trace.sample, outcome, "outcome")[1]:
            left_out.add("the answer was wrong")
        elif (reading := read(trace, outcome, "needle_value", "set", left_out)) is not None:
            readings.append(reading)
            groups.add(group_size(trace))
    if not readings:
        why = " ".join(left_out.notes()) or "There is no trace."
        raise NotAvailable(f"no successful retrieval to take heads from. {why}")
    if not np.all([reading.exists for reading in readings]):
        raise UsageError("DuoAttention's form has as many heads in every layer, and some layers here lack heads")
    group = groups.pop()
    if groups or group is None:
        raise UsageError("the traces do not say how many key-value heads a layer has; capture them anew")
    prompts = [reading.prompt for reading in readings]
    score = by_cluster([reading.score for reading in readings], prompts).mean(axis=0)
    grouped = score.reshape(len(score), -1, group)
    return grouped.max(axis=-1) if pooling == "max" else grouped.mean(axis=-1), len(set(prompts))


def write_head_gates(
    run: Run | Trace | Iterable[Trace], folder: Path, *, threshold: float = 0.1, pooling: Pooling = "max"
) -> tuple[int, int]:
    """Write a folder as DuoAttention's patterns are; return how many key-value heads stay whole, and of how many.

    `full_attention_heads.tsv` holds the scores of `head_gates`, a line a layer; `config.json` the sizes that both
    libraries read, and the rule by which heads were split: `sparsity` is the share of key-value heads whose score is no
    more than `threshold`. Given as DuoAttention's `sparsity` or kvpress's `head_compression_ratio` it leaves whole just
    those above. Raises UsageError where something stands at `folder`, or for what `head_gates` refuses.
    """
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold {threshold}: expected a score from 0 to below 1")
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists; it stays as it is")
    gates, num_prompts = head_gates(run, pooling=pooling)
    whole = int((gates > threshold).sum())
    config = {
        "sink_size": SINK_SIZE,
        "recent_size": RECENT_SIZE,
        "sparsity": 1 - whole / gates.size,
        "threshold": threshold,
        "pooling": pooling,
        "num_prompts": num_prompts,
        "gate": "copying score (Wu et al. 2024) per key-value head, in the place of a trained gate",
    }
    folder.mkdir(parents=True)
    np.savetxt(folder / "full_attention_heads.tsv", gates, fmt="%.17g", delimiter="\t")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return whole, gates.size
