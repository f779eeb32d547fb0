"""The one vocabulary of axes: the same words name shapes in annotations, dimensions in traces and columns in tables."""

from __future__ import annotations

from typing import Final

AXES: Final[dict[str, str]] = {
    "sample": "one prompt with its spans and its answer",
    "condition": "what was done to the model or to the prompt",
    "layer": "index of an attention layer, from 0",
    "head": "index of a query head within its layer, from 0",
    "state_head": "index of a head of a recurrent layer, each with a state of its own, from 0",
    "kv_head": "index of a key-value head; query head h reads kv_head h // (heads / kv_heads)",
    "query": "position of a query token, from 0 at the first token that is not padding",
    "key": "position of a key token, from 0 at the first token that is not padding",
    "token": "position of a token in the prompt and the answer, from 0",
    "query_block": "block of consecutive queries; the coordinate is its first position",
    "key_block": "block of consecutive keys; the coordinate is its first position",
    "token_block": "block of consecutive tokens; the coordinate is its first position",
    "channel": "component of a head's or the residual stream's vector",
    "row": "query whose logits produced an answer token; the last prompt token makes row 0",
    "rank": "0 for the largest",
    "component": "principal direction of a head's vectors; 0 for the one with the largest singular value",
    "span": "a named stretch of the sample: needle, question, answer",
    "distance_bin": "query position minus key position: {0}, [1, 2), [2, 4), [4, 8), …; coordinate: the lower edge",
    "offset": "query position minus key position, in tokens",
    "rope_pair": "index of a rotated pair of channels, fastest first",
    "step": "index of a decoded token, from 0",
    "position": "token position after which a recurrent state was read",
}
