"""The calls of a forward, sample by sample, each held against what the model's own attention made of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, NoReturn

from torch import Tensor

from probe.errors import NotReproducible
from probe.hooks.attention.calls_by_phase import from_query
from probe.hooks.attention.documents import chunk_of_keys
from probe.hooks.attention.fused import fused_attention, log_sum_exp_of
from probe.hooks.attention.key_bias import check_key_bias
from probe.hooks.attention.mask_agreement import as_masked
from probe.hooks.attention.relative_bias import relative_bias
from probe.hooks.attention.tap import site
from probe.hooks.attention.verification import recomputed
from probe.kernels.call import Call

_log = logging.getLogger("probe")


class verified_calls:
    """Makes a model's calls out of what its attention was given; remembers what it has warned of."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: set[int] = set()

    def calls(
        self, here: site, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        output: Tensor, options: dict[str, Any], fused: fused_attention | None,
    ) -> Iterator[tuple[int, tuple[int, int], int, Call]]:  # fmt: skip
        """Yield each sample's verified call, with its rows among the forward's and where its keys begin there.

        `output` is that of all the forward's queries, or of its last ones alone.
        """
        facts = here.forward
        if query.shape[2] != facts.num_queries or query.shape[0] != facts.num_samples:
            self._refuse(
                here, f"attention sees {query.shape[2]} queries where the forward has {facts.num_queries} tokens"
            )
        bias = options.get("position_bias")
        # T5 adds zeros where it has learnt nothing.
        if isinstance(bias, Tensor) and bool(bias.any()):
            self._refuse(here, "a position bias is added to its logits")
        if here.part == "cross" and key.shape[2] != facts.num_keys:
            self._refuse(here, f"it looks over {key.shape[2]} keys where the encoder has {facts.num_keys} tokens")
        scale, window, sink = options.get("scaling"), options.get("sliding_window"), options.get("s_aux")
        total = facts.num_keys
        # A sliding cache holds fewer keys than were seen; a static one has room for more.
        first_key = max(total - key.shape[2], 0)
        for sample in range(query.shape[0]):
            start, stop = facts.keys_of(sample)
            rows = facts.queries_of(sample)
            if rows[0] == rows[1]:
                continue
            columns = max(start - first_key, 0), min(stop - first_key, key.shape[2])
            call = Call(
                layer=here.layer,
                query=query[sample, :, rows[0] : rows[1]].detach(),
                key=key[sample, :, columns[0] : columns[1]].detach(),
                value=value[sample, :, columns[0] : columns[1]].detach(),
                scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
                query_start=facts.num_past + rows[0] - facts.ranges[sample][0],
                key_start=first_key + columns[0] - start,
                causal=here.causal,
                window=int(window) if window else None,
                softcap=options.get("softcap"),
                sink_logit=None if sink is None else sink.detach().reshape(-1),
                alibi_slope=options.get("alibi_slope"),
                part=here.part,
                phase=facts.phase or "prefill",
            )
            if isinstance(bias, relative_bias):
                call = dataclasses.replace(call, distance_bias=bias.table.detach(), distance_bias_start=bias.start)
            call = dataclasses.replace(call, document=chunk_of_keys(here.module, call))
            has_mask = isinstance(mask, Tensor) and mask.ndim == 4
            if fused is not None and (fused.visible != "masked" or has_mask or bias is not None):
                call = dataclasses.replace(call, log_sum_exp=log_sum_exp_of(call, sample, fused))
            check_key_bias(call, options.get("key_bias"), sample, columns, f"{self.name}, layer {here.layer}")
            call = self._verified(here, sample, rows, columns, call, mask, output, options)
            yield sample, rows, columns[0] + first_key, call

    def _verified(
        self, here: site, sample: int, rows: tuple[int, int], columns: tuple[int, int], call: Call,
        mask: Tensor | None, output: Tensor, options: dict[str, Any],
    ) -> Call:  # fmt: skip
        masked = as_masked(call, mask, here.forward, options, sample=sample, rows=rows, columns=columns)
        if isinstance(masked, str):
            self._refuse(here, masked)
        call = masked
        missing = here.forward.num_queries - output.shape[1]
        first = max(missing, rows[0])
        off = recomputed(from_query(call, first - rows[0]), output[sample, first - missing : rows[1] - missing])
        if off.output > off.output_allowed:
            # In some versions of transformers SDPA takes a softcap and does not apply it.
            hint = "" if call.softcap is None else "; it may not apply the softcap: load it with eager attention"
            self._refuse(
                here,
                "the attention output cannot be reproduced from queries, keys and mask: largest difference "
                f"{off.output:.3g}, where {off.output_allowed:.3g} is allowed for "
                f"{str(call.query.dtype).removeprefix('torch.')}{hint}",
            )
        if not off.finite:
            # The CPU's operator gives 0 for a row of NaN.
            call = dataclasses.replace(call, log_sum_exp=None)
        elif off.log_sum_exp > off.log_sum_exp_allowed:
            # The output is right, so the call is; without the log-sum-exp it is merely computed once more.
            if here.layer not in self.said:
                _log.warning(
                    "%s, layer %d: the log-sum-exp that its attention operator handed over is off by %.3g nats where "
                    "%.3g is allowed, and is not used; nothing more is said of this layer",
                    self.name, here.layer, off.log_sum_exp, off.log_sum_exp_allowed,
                )  # fmt: skip
            self.said.add(here.layer)
            call = dataclasses.replace(call, log_sum_exp=None)
        return call

    def _refuse(self, here: site, reason: str) -> NoReturn:
        raise NotReproducible(f"{self.name}, layer {here.layer}: {reason}")
