"""Every statistic in plain NumPy, from attention patterns, keys and values that the toolkit did not capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probe.conformance.eager import Pattern
from probe.sample import Span

Array = np.ndarray[Any, Any]


def expected(
    pattern: Pattern,
    below: Pattern | None,
    tokens: Sequence[int],
    *,
    first_row: int,
    spans: Sequence[Span],
    num_kv_heads: int,
) -> dict[str, Array]:
    """Return what one layer's arrays must be, by their names in a trace; arrays whose source was not seen are absent.

    `first_row` is the position of the first decoding query; keys of the prompt end there.
    """
    found = expected_of_text(pattern.probability, tokens, first_row, spans)
    if pattern.logit is not None:
        # Largest first: what is masked is far below, or −inf.
        largest = pattern.logit.max(-1)
        found["max_logit"] = largest
        found["log_sum_exp"] = largest + np.log(np.exp(pattern.logit - largest[..., None]).sum(-1))
    key, value = (_of_kv_heads(each, num_kv_heads) for each in (pattern.key, pattern.value))
    if value is not None:
        found["value_norm"] = np.linalg.norm(value, axis=-1)
        found["output_norm_share"] = _shares(pattern.probability[:, first_row:], value, spans)
    if key is not None:
        found |= _of_keys(key, first_row + 1)
    if below is not None:
        for name, own, other in (("key", key, below.key), ("value", value, below.value)):
            before = _of_kv_heads(other, num_kv_heads)
            if own is not None and before is not None and before.shape == own.shape:
                found[f"{name}_layer_similarity"] = _cosine(own, before)
    if pattern.query is not None:
        asked = pattern.query[:, : first_row + 1][:, -32:]
        found["key_channel_energy_query"] = (asked**2).mean(1).reshape(num_kv_heads, -1, asked.shape[-1]).mean(1)
    return found


def expected_of_text(p: Array, tokens: Sequence[int], first_row: int, spans: Sequence[Span]) -> dict[str, Array]:
    """Return what probabilities over one text say, [head, query, key]."""
    return expected_of_rows(p, first_row, spans) | _of_positions(p, np.asarray(tokens))


def expected_of_hidden(hidden: Array) -> dict[str, Array]:
    """Return the residual stream's arrays, of [token, channel]."""
    size = np.abs(hidden)
    return {
        "residual_norm": np.linalg.norm(hidden, axis=-1),
        "residual_max": size.max(-1),
        "residual_max_channel": size.argmax(-1),
        "residual_median": np.median(size, -1),
    }


def expected_loss(logits: Array, tokens: Sequence[int]) -> Array:
    """Return each token's negative log-likelihood given those before it; NaN at the first."""
    largest = logits.max(-1)
    normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    loss: Array = normaliser[:-1] - logits[np.arange(len(tokens) - 1), np.asarray(tokens)[1:]]
    return np.concatenate([[np.nan], loss])


def expected_of_rows(p: Array, first_row: int, spans: Sequence[Span]) -> dict[str, Array]:
    """Return what needs no positions: also of cross-attention, whose queries and keys stand in two texts."""
    # A softmax in float64 leaves no visible key of such small models at 0.
    seen: Array = np.asarray((p > 0).any(0))
    rows = p[:, first_row:]
    ranked = -np.sort(-np.pad(rows, ((0, 0), (0, 0), (0, 8))), -1)[..., :8]
    return {
        "entropy": -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(-1),
        "max_probability": p.max(-1),
        "sink_mass": p[..., :4].sum(-1),
        "sink_mass_learned": 1 - p.sum(-1),
        "received_mass": p.sum(1),
        "received_mass_num_queries": seen.sum(0),
        "received_mass_horizon_16": p[:, :16].sum(1),
        "received_mass_horizon_16_num_queries": seen[:16].sum(0),
        # Prompts are so short that each cell of the map is one query and one key.
        "attention_map": p,
        "attention_map_max": p,
        "span_mass": np.stack([rows[..., span.start : span.stop].sum(-1) for span in spans], -1),
        "top_keys_probability": ranked,
        "exp(max_logit - log_sum_exp)": p.max(-1),
        "probability of argmax_key": p.max(-1),
        "probability of top_keys": ranked,
    }


def _of_positions(p: Array, tokens: Array) -> dict[str, Array]:
    n = p.shape[-1]
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    distance = np.abs(i - j)
    previous = np.concatenate([[-1], tokens[:-1]])
    edges = [(0, 1), *((1 << bit, 2 << bit) for bit in range(40) if 1 << bit < n)]
    binned = [np.where((distance >= low) & (distance < high), p, 0).sum((1, 2)) for low, high in edges]
    return {
        "recent_mass": np.where((i >= j) & (distance < 64), p, 0).sum(-1),
        "offset_mass": np.stack([np.trace(p, -d, 1, 2) if d < n else np.zeros(len(p)) for d in range(128)], -1),
        "match_mass": np.where((tokens[j] == tokens[i]) & (i > j), p, 0).sum(-1),
        "match_mass_by_induction": np.where((previous[j] == tokens[i]) & (i >= j), p, 0).sum(-1),
        "mean_distance": (p * distance).sum(-1),
        "distance_histogram": np.stack(binned, -1),
    }


def _of_keys(key: Array, num_prompt: int) -> dict[str, Array]:
    neighbour = np.full(key.shape[:2], np.nan)
    neighbour[:, 1:] = _cosine(key[:, 1:], key[:, :-1])
    found = {"key_norm": np.linalg.norm(key, axis=-1), "key_neighbour_similarity": neighbour}
    for name, matrix in (("key_spectrum", key), ("key_spectrum_centred", key - key.mean(1, keepdims=True))):
        singular = np.linalg.svd(matrix, compute_uv=False) / np.sqrt(key.shape[1])
        found[name] = np.pad(singular, ((0, 0), (0, key.shape[-1] - singular.shape[-1])))
        share = singular**2 / (singular**2).sum(-1, keepdims=True)
        entropy = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(-1)
        found[f"{name}_effective_rank"] = np.exp(entropy)
        found[f"{name}_participation_ratio"] = 1 / (share**2).sum(-1)
    per_head = np.ones(len(key))
    found["key_channel_energy"] = (key[:, :num_prompt] ** 2).mean(1)
    found["key_channel_energy_num_keys"] = per_head * num_prompt
    found["key_channel_energy_num_queries"] = per_head * min(num_prompt, 32)
    return found


def _of_kv_heads(tensor: Array | None, num_kv_heads: int) -> Array | None:
    """Return [kv_head, …] of heads that were repeated; None where the repeats are not equal, or nothing was seen."""
    if tensor is None or len(tensor) % num_kv_heads:
        return None
    grouped = tensor.reshape(num_kv_heads, -1, *tensor.shape[1:])
    return grouped[:, 0] if bool((grouped == grouped[:, :1]).all()) else None


def _shares(rows: Array, value: Array, spans: Sequence[Span]) -> Array:
    value = value.repeat(len(rows) // len(value), 0)
    whole = np.linalg.norm(rows @ value, axis=-1)
    parts = [rows[..., span.start : span.stop] @ value[:, span.start : span.stop] for span in spans]
    return np.stack([np.linalg.norm(part, axis=-1) / whole for part in parts], -1)


def _cosine(a: Array, b: Array) -> Array:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine: Array = np.divide((a * b).sum(-1), norms, where=norms > 0, out=np.zeros_like(norms))
    return cosine
