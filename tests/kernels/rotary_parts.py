"""What rotary pairs add to logits, pair of tokens by pair of tokens in NumPy: shares nothing with the code under test
but which keys are drawn, which is the definition's own choice."""

from __future__ import annotations

import numpy as np
import torch

from probe.kernels.call import Call
from probe.kernels.rope_pairs import drawn_distances, uniform

Arrays = dict[str, np.ndarray]


def turning(channels: int) -> torch.Tensor:
    """Pairs of a head this wide: halves, or, where 60 wide, neighbours among the last 40, the first 20 not turning."""
    if channels == 60:
        return torch.arange(20, 60).reshape(20, 2)
    return torch.arange(channels).reshape(2, channels // 2).T


def parts(call: Call, sinks: int = 4) -> list[tuple[int, int, int, np.ndarray]]:
    """Each drawn pair: its query's position, bin and distance, and c `[head, rope_pair]`."""
    query, key = call.query.double().numpy(), call.key.double().numpy()
    channels = query.shape[-1]
    groups = [list(pair) for pair in call.rotary_pairs.tolist()]
    if rest := [c for c in range(channels) if c not in call.rotary_pairs.flatten().tolist()]:
        groups.append(rest)
    document = None if call.document is None else call.document.numpy()
    found = []
    for row in range(query.shape[1]):
        i = call.query_start + row
        drawn, allowed = drawn_distances(np.array([i]), 0, sinks, call.window)
        for b, (distance, there) in enumerate(zip(drawn[0], allowed[0], strict=True)):
            j = i - distance - call.key_start
            if not there or not 0 <= j < key.shape[1]:
                continue
            if document is not None and document[j] != document[i - call.key_start]:
                continue
            if call.key_visible is not None and not call.key_visible[j]:
                continue
            product = query[:, row] * np.repeat(key[:, j], len(query) // len(key), axis=0) * call.scale
            c = np.stack([product[:, group].sum(-1) for group in groups], -1)
            found.append((i, b, int(distance), c))
    return found


def of_rotary(call: Call, nearest: int = 64) -> Arrays:
    """Return both statistics, at their defaults."""
    found = parts(call)
    last = call.query_start + call.query.shape[1] - 1
    bins, heads, turn = 1 + last.bit_length(), call.query.shape[0], len(call.rotary_pairs)
    num = turn + (2 * turn < call.query.shape[-1])
    share, count = np.full((heads, bins, num), np.nan), np.zeros((heads, bins), np.int64)
    for b in range(bins):
        inside = [abs(c) / abs(c).sum(-1, keepdims=True) for _, at, _, c in found if at == b]
        if inside:
            share[:, b], count[:, b] = np.mean(inside, axis=0), len(inside)
    out = {"rope_share": share, "rope_share_num_pairs": count}
    far = [each for each in found if each[2] >= nearest]
    values = {name: np.full((heads, num), np.nan) for name in ("", "_distance", "_shuffled")}
    if len(far) >= 2:
        distance, c = np.array([each[2] for each in far], float), np.stack([each[3] for each in far])
        s = abs(c) / abs(c).sum(-1, keepdims=True)
        slower = s.copy()
        slower[..., :turn] = [[[pair[d:turn].sum() for d in range(turn)] for pair in each] for each in s]
        other = []
        for i, b, _, _ in far:
            own = [d for x, _, d, _ in far if x == i]
            other.append(own[int(uniform(1, np.array([i]), np.array([b]))[0] * len(own))])
        for h in range(heads):
            for d in range(num):
                values[""][h, d] = pearson(c[:, h, d], c[:, h].sum(-1))
                values["_distance"][h, d] = pearson(slower[:, h, d], distance)
                values["_shuffled"][h, d] = pearson(slower[:, h, d], np.array(other, float))
    out |= {f"rope_correlation{name}": each for name, each in values.items()}
    return out | {"rope_correlation_num_pairs": np.full(heads, len(far))}


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; 0 where either does not vary."""
    if np.ptp(x) <= 1e-9 * abs(x).max() or np.ptp(y) <= 1e-9 * abs(y).max():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
