"""A place for attention to go to that carries nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.tap import site
from probe.kernels.call import Call


@dataclass(frozen=True)
class insert_sink(ChangeOfCalls):
    """Give each row one more logit that takes its share of the softmax and has no value: `insert_sink(0.0)(model)`.

    A head may then attend to nothing. With logit 0 it is softmax with 1 added to the denominator, the "zero sink" of
    Xiao et al. (2023, arXiv 2309.17453); models such as gpt-oss learn one logit per head, and have this one beside it.
    The heads' outputs shrink, which no training has prepared them for. A logit of −∞ changes nothing.
    """

    logit: float | Sequence[float] = 0.0
    """The logit, common to all heads, or one for each query head, the same in every layer on which it acts. 0 is Xiao
    et al.'s zero sink."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            each = isinstance(self.logit, Sequence) and not isinstance(self.logit, str)
            logit = tuple(map(float, self.logit)) if each else float(self.logit)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise UsageError(f"insert_sink: logit is a number, or one for each head, not {self.logit!r}") from error
        for value in logit if isinstance(logit, tuple) else (logit,):
            if math.isnan(value) or value == math.inf:
                raise UsageError(f"insert_sink: logit is a number or −∞, not {value}")
        object.__setattr__(self, "logit", logit)

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"sink"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        chosen = self._chosen(model)
        if isinstance(self.logit, tuple):
            from_model = {layer: found.num_heads for layer, found in attention_parts(model)["self"].items()}
            for layer in chosen:
                if from_model[layer] != len(self.logit):
                    raise UsageError(
                        f"insert_sink: logit has {len(self.logit)} numbers, and layer {layer} {from_model[layer]} heads"
                    )

        def change(here: site, sample: int, call: Call) -> Call:
            logit = torch.tensor(self.logit, dtype=torch.float32, device=call.query.device).expand(call.num_heads)
            if bool((logit == -math.inf).all()):
                return call
            if call.sink_logit is not None:
                # Two keys without values are one with the sum of their weights.
                logit = torch.logaddexp(logit, call.sink_logit.to(logit))
            return dataclasses.replace(call, sink_logit=logit)

        return change
