"""The call that a mask shows: as it was read, or in the packed sequences that the mask keeps apart."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from probe.hooks.attention.verification import mask_difference, shown_by_mask
from probe.hooks.sequence.forward_facts import forward_facts
from probe.kernels.call import Call


def as_masked(
    call: Call, mask: Tensor | None, facts: forward_facts, options: dict[str, Any], *,
    sample: int, rows: tuple[int, int], columns: tuple[int, int],
) -> Call | str:  # fmt: skip
    """Return the call in the documents that its mask has, or in words why it is not the model's attention.

    Without a 4-D mask the call is as it was read. Whether packed sequences are kept apart only a mask says:
    transformers does so without a cache alone. A mask that layers share is compared once.
    """
    if call.key_start > 0 and call.window is None and call.document is None:
        return (
            f"its cache dropped the {call.key_start} oldest keys though its attention has no window, so that it is "
            "another than in one forward"
        )
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return call
    shown = shown_by_mask(call, options.get("mask_shows", "all"))
    chunked = call.document is not None
    seen = (id(mask), sample, rows, columns, shown.causal, shown.window, chunked)
    if seen not in facts.checked_masks:
        candidates = [shown]
        if facts.packed is not None and not chunked:
            document = facts.packed[sample if facts.packed.shape[0] > 1 else 0, columns[0] : columns[1]]
            candidates.append(dataclasses.replace(shown, document=document.to(call.key.device)))
        if shown.window is not None and not shown.causal:
            # transformers counts the far edge of a bidirectional window in; some models (T5Gemma) do not say so.
            candidates.append(dataclasses.replace(shown, window=shown.window + 1))
        reasons = []
        for candidate in candidates:
            reason = mask_difference(
                mask, sample=sample, rows=rows, columns=columns, call=candidate,
                hides=options.get("mask_hides", False), bias=options.get("mask_bias"),
            )  # fmt: skip
            if reason is None:
                facts.checked_masks[seen] = mask, candidate.document, (candidate.window or 0) - (shown.window or 0)
                break
            reasons.append(reason)
        else:
            return reasons[0]
    _, kept_apart, wider = facts.checked_masks[seen]
    return dataclasses.replace(call, document=kept_apart, window=call.window and call.window + wider)
