"""Writes the queries and keys of one layer as they come, with what is needed to compute its attention from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.errors import NotReproducible
from probe.kernels.call import Call
from probe.kernels.visibility import Visibility
from probe.storage.array import Array
from probe.storage.group_writer import GroupWriter


class KeptVectors:
    """One layer's queries and keys on their way to the disk; the vectors of one call are in memory at a time."""

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer
        self._key_stop: int | None = None
        self.facts: dict[str, Any] = {}
        """How the layer attends, as JSON values: what `Trace.kept_layers` says of it."""

    def take(self, call: Call) -> None:
        """Write the next call's queries, and those of its keys that are new."""
        if call.changes:
            raise NotReproducible(
                f"layer {call.layer}: queries_and_keys cannot keep attention whose logits an intervention changes; "
                "capture statistics of it instead"
            )
        facts = _facts(call)
        if not self.facts:
            self.facts = {**facts, "query_start": call.query_start, "key_start": call.key_start}
        elif any(self.facts[name] != value for name, value in facts.items()):
            raise NotReproducible(f"layer {call.layer} attends otherwise than before: {facts}, {self.facts} before")
        visibility = Visibility.of(call)
        position = {"query": call.query_start + np.arange(call.num_queries)}
        dims, meaning = ("head", "query", "channel"), "queries after rotation, before scaling"
        self._writer.append({"query_vector": _vectors(call.query, dims, meaning, position)}, "query", split=("head",))
        bounds = {
            "first_key": (visibility.first, "position of the first key that the query sees"),
            "stop_key": (visibility.stop, "position after the last key that the query sees"),
        }
        self._writer.append(
            {
                name: Array(("query",), values.numpy(), "position", said, coordinates=position, merge="concatenate")
                for name, (values, said) in bounds.items()
            },
            "query",
        )
        self._take_keys(call)

    def _take_keys(self, call: Call) -> None:
        first = 0 if self._key_stop is None else self._key_stop - call.key_start
        if first < 0:
            raise NotReproducible(
                f"layer {call.layer}: keys {self._key_stop} to {call.key_start} left the cache before they were seen"
            )
        stop = call.key_start + call.num_keys
        if first >= call.num_keys:
            return
        position = {"key": np.arange(call.key_start + first, stop)}
        dims, meaning = ("kv_head", "key", "channel"), "keys after rotation"
        vectors = _vectors(call.key[:, first:], dims, meaning, position)
        self._writer.append({"key_vector": vectors}, "key", split=("kv_head",))
        visible = np.ones(call.num_keys - first, bool)
        if call.key_visible is not None:
            visible = call.key_visible[first:].cpu().numpy()
        said = "False for keys that are hidden from every query"
        self._writer.append({"key_visible": Array(("key",), visible, "", said, coordinates=position)}, "key")
        self._key_stop = stop


def _facts(call: Call) -> dict[str, Any]:
    return {
        "scale": float(call.scale),
        "softcap": call.softcap,
        "window": call.window,
        "causal": call.causal,
        "sink_logit": None if call.sink_logit is None else call.sink_logit.float().tolist(),
        "alibi_slope": None if call.alibi_slope is None else call.alibi_slope.float().tolist(),
        "distance_bias": None if call.distance_bias is None else call.distance_bias.float().tolist(),
        "distance_bias_start": call.distance_bias_start,
        "documents": call.document is not None,
    }


def _vectors(values: Tensor, dims: tuple[str, ...], meaning: str, coordinates: dict[str, Any]) -> Array:
    values = values.detach().cpu().contiguous()
    bits = values.dtype == torch.bfloat16
    numbers = values.view(torch.uint16).numpy() if bits else values.numpy()
    said = f"{meaning}, in the model's dtype"
    return Array(
        dims,
        numbers,
        definition=said,
        coordinates=coordinates,
        merge="concatenate",
        bits_of="bfloat16" if bits else "",
    )
