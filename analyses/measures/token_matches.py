"""How often a token stands again at a distance, and what attention by distance alone would give such matches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def matching_pairs(tokens: Sequence[int], edges: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of pairs of equal tokens whose distance is in `[edges[b], edges[b + 1])`, for each b.

    Time and memory grow like the number of tokens times that of the bins.
    """
    ids = np.unique(np.asarray(tokens, np.int64), return_inverse=True)[1]
    num = len(ids)
    order = np.lexsort((np.arange(num), ids))
    # Sorted by token, then by position; tokens lie further apart than any distance.
    place = np.arange(num)[order] + ids[order] * (4 * num + 4)
    below = [np.searchsorted(place, place - min(edge, 2 * num) + 1, side="left") for edge in edges]
    return np.array([(below[b] - below[b + 1]).sum() for b in range(len(edges) - 1)], np.int64)


def by_distance_alone(histogram: ArrayLike, lower_edges: Sequence[int], tokens: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the mass per query on duplicates and on induction's keys of heads that look by distance alone.

    `histogram [… bin]` is `distance_histogram` over the queries at the tokens' positions, `lower_edges` its bins'.
    Within a bin the mass is taken to be spread evenly over the pairs of that distance, so that of each bin the share of
    matching pairs is what such a head hits by chance (this toolkit's own). Definitions of matches: `match_mass`.
    """
    num = len(tokens)
    edges = np.append(np.asarray(lower_edges, np.int64), num)
    edges = np.minimum.accumulate(np.maximum(edges, 0)[::-1])[::-1]
    counts = np.maximum(num - np.arange(num), 0)
    pairs = np.array([counts[a:b].sum() for a, b in pairwise(edges.tolist())])
    duplicate = matching_pairs(tokens, list(edges))
    duplicate = duplicate - np.where((edges[:-1] == 0) & (edges[1:] > 0), num, 0)
    # The key after the match stands one nearer: key j of distance d has its token before it at distance d + 1.
    induction = matching_pairs(tokens, list(edges + 1))
    mass = np.asarray(histogram, np.float64)[..., : len(pairs)] / num
    shares = [np.divide(each, pairs, out=np.zeros(len(pairs)), where=pairs > 0) for each in (duplicate, induction)]
    return mass @ shares[0], mass @ shares[1]
