"""Random heads to compare an ablation with: as many, in the same layers, of like output norm."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from probe.errors import UsageError

Head = tuple[int, int]


def matched_heads(
    heads: Collection[Head],
    norms: Float[np.ndarray, "layer head"],
    exclude: Collection[Head] = (),
    draws: int = 20,
    seed: int = 0,
) -> list[tuple[Head, ...]]:
    """Distinct random sets of other heads, each with as many heads in every layer as `heads`, none of `exclude`.

    In each layer a set is drawn from the heads whose norm (see `head_output_norm`) is nearest, by ratio, to that of
    one of the layer's `heads`: at first twice as many candidates as heads, and in all layers one more at a time until
    there are `draws` distinct sets or no candidates are left. Where fewer sets exist, all of them come back, so the
    length of the answer may be below `draws`. The same seed gives the same sets. Raises `UsageError` naming the layer
    that has fewer other heads than are needed.

    This is this toolkit's own rule: the control of Wu et al. (2024) draws from all layers, and its exclusion of
    retrieval heads never takes effect in the authors' code.
    """
    counts = Counter(layer for layer, _ in heads)
    if not counts or draws < 1:
        raise UsageError("a control needs at least one head to match and at least one draw")
    never = {(int(layer), int(head)) for layer, head in (*heads, *exclude)}
    nearest = {layer: _nearest(layer, heads, norms, never) for layer in sorted(counts)}
    for layer, count in counts.items():
        if len(nearest[layer]) < count:
            raise UsageError(
                f"layer {layer} has {len(nearest[layer])} heads that are neither ablated nor excluded, and a control "
                f"for {count} ablated heads needs {count}"
            )
    pools = _pools(nearest, counts, draws)
    rng = np.random.default_rng(seed)
    if _num_sets(pools, counts) <= 4 * draws:
        choices = [itertools.combinations(sorted(pools[layer]), counts[layer]) for layer in pools]
        every = [tuple(itertools.chain(*each)) for each in itertools.product(*choices)]
        return [every[index] for index in rng.permutation(len(every))[:draws]]
    found: dict[tuple[Head, ...], None] = {}
    while len(found) < draws:
        picked = (rng.choice(len(pools[layer]), counts[layer], replace=False) for layer in pools)
        drawn = (sorted(pools[layer][i] for i in indices) for layer, indices in zip(pools, picked, strict=True))
        found[tuple(itertools.chain(*drawn))] = None
    return list(found)


def _nearest(
    layer: int, heads: Collection[Head], norms: Float[np.ndarray, "layer head"], never: Collection[Head]
) -> list[Head]:
    """The layer's other heads, those with the most similar norm first."""
    if not 0 <= layer < norms.shape[0]:
        raise UsageError(f"layer {layer} has no norms: they are of {norms.shape[0]} layers")
    for head in (head for each, head in heads if each == layer):
        if not 0 <= head < norms.shape[1]:
            raise UsageError(f"layer {layer} has no head {head}: the norms are of {norms.shape[1]} heads")
    wanted = [norms[layer, head] for each, head in heads if each == layer]
    if not np.isfinite(wanted).all():
        raise UsageError(f"layer {layer}: the norms of its ablated heads are not finite")
    tiny = np.finfo(float).tiny
    distance = {
        (layer, head): min(abs(math.log((norms[layer, head] + tiny) / (norm + tiny))) for norm in wanted)
        for head in range(norms.shape[1])
        if (layer, head) not in never and np.isfinite(norms[layer, head])
    }
    return sorted(distance, key=lambda head: (distance[head], head))


def _pools(nearest: Mapping[int, Sequence[Head]], counts: Mapping[int, int], draws: int) -> dict[int, Sequence[Head]]:
    for extra in range(max(len(each) for each in nearest.values()) + 1):
        pools = {layer: each[: 2 * counts[layer] + extra] for layer, each in nearest.items()}
        if _num_sets(pools, counts) >= draws:
            break
    return pools


def _num_sets(pools: Mapping[int, Sequence[Head]], counts: Mapping[int, int]) -> int:
    return math.prod(math.comb(len(pool), counts[layer]) for layer, pool in pools.items())
