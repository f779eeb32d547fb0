"""Which queries of a call decode."""

from __future__ import annotations

import dataclasses

from probe.hooks.sequence.forward_facts import forward_facts
from probe.kernels.call import Call


def by_phase(call: Call, facts: forward_facts, offset: int) -> list[Call]:
    """Cut a call where its phase changes; `offset` is where its keys begin among the tokens of the forward.

    What was declared holds for all. Else the last query of a prompt decodes, and every query on a cache that holds
    tokens; a bidirectional layer has no decoding.
    """
    if facts.tokens is not None:
        # A model's layers may lie on different devices.
        here = facts.tokens[offset : offset + call.num_keys].to(call.query.device)
        call = dataclasses.replace(call, tokens=here)
    if facts.phase is not None or not (call.causal or call.part == "cross"):
        return [call]
    if facts.num_past > 0 or call.num_queries == 1:
        return [dataclasses.replace(call, phase="decode")]
    last, keys = call.num_queries - 1, call.num_keys - (call.part != "cross")
    tokens = call.tokens
    prompt = dataclasses.replace(
        call, query=call.query[:, :last], key=call.key[:, :keys], value=call.value[:, :keys],
        tokens=None if tokens is None else tokens[:keys],
        document=None if call.document is None else call.document[:keys],
        log_sum_exp=None if call.log_sum_exp is None else call.log_sum_exp[:, :last],
    )  # fmt: skip
    return [prompt, dataclasses.replace(from_query(call, last), phase="decode")]


def from_query(call: Call, first: int) -> Call:
    """Return the call without its first queries."""
    if first == 0:
        return call
    log_sum_exp = None if call.log_sum_exp is None else call.log_sum_exp[:, first:]
    start = call.query_start + first
    return dataclasses.replace(call, query=call.query[:, first:], query_start=start, log_sum_exp=log_sum_exp)
