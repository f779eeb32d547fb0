"""What a model's own eager attention does in float64, watched from outside: nothing of the capture takes part."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

Array = np.ndarray[Any, Any]

_SOFTMAX = {torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}
_PRODUCTS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm}


@dataclass(eq=False)
class Pattern:
    """One attention layer's pattern over one sample, padding cut off."""

    probability: Array
    """[head, query, key]."""
    logit: Array | None = None
    """What went into the softmax, [head, query, key]; None where it was not seen, or has other columns."""
    query: Array | None = None
    """[head, query, channel]."""
    key: Array | None = None
    """[head or kv_head, key, channel]."""
    value: Array | None = None
    """[head or kv_head, key, value_channel]."""


@dataclass(eq=False)
class EagerRun:
    """One forward of the eager copy."""

    samples: list[list[Pattern]]
    """By sample, the pattern of each attention layer in order; empty where nothing could be seen."""
    hidden: list[list[Array]]
    """By sample, the hidden states that the model hands out but the last, [token, channel]."""
    logits: list[Array]
    """By sample, [token, vocabulary]."""
    source: str
    """Where the patterns come from."""


def eager_copy(
    model: PreTrainedModel, dtype: torch.dtype = torch.float64, attention: str | None = "eager"
) -> PreTrainedModel:
    """Return a model of the same weights in `dtype` that was made with eager attention.

    With another `attention` (SDPA) its patterns are computed from what it is called with. Not a copy whose attention is
    switched: some models choose theirs when they are made, and stay with it.
    """
    made: PreTrainedModel = type(model)._from_config(copy.deepcopy(model.config), attn_implementation=attention)
    made.load_state_dict(model.state_dict())
    if hasattr(made, "set_experts_implementation"):
        # The grouped product of experts knows no float64.
        made.set_experts_implementation("eager")
    return made.to(dtype).eval()


@torch.no_grad()
def eager_run(model: PreTrainedModel, inputs: Mapping[str, Tensor], ranges: list[tuple[int, int]]) -> EagerRun:
    """Run an `eager_copy`; `ranges` are the real tokens of each sample."""
    with _Watch(num_tokens=inputs["input_ids"].shape[1], num_samples=len(ranges)) as watch:
        output = _forward(model, inputs)
    handed_out = [each for each in getattr(output, "attentions", None) or () if _is_a_pattern(each)]
    seen = watch.seen
    # Between the softmax and what is handed out nothing may have changed; then the softmax also says the logits.
    if handed_out:
        patterns = [_joined(each, seen) for each in handed_out]
        source = "the probabilities that its eager attention hands out, in float64"
    else:
        patterns = [each for each in seen if each.probability is not None]
        fused = getattr(model.config, "_attn_implementation", "eager") == "sdpa"
        source = f"{'what SDPA is called with' if fused else 'the softmax inside its eager attention'}, in float64"
    hidden = [each for each in (getattr(output, "hidden_states", None) or ())[:-1] if each.ndim == 3]
    return EagerRun(
        [[each.of(sample, *kept) for each in patterns] for sample, kept in enumerate(ranges)],
        [[_numpy(each[sample, slice(*kept)]) for each in hidden] for sample, kept in enumerate(ranges)],
        [_numpy(output.logits[sample, slice(*kept)]) for sample, kept in enumerate(ranges)],
        source if patterns else "",
    )


def _forward(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Any:
    wanted = {"use_cache": False, "output_hidden_states": True}
    if model.config._attn_implementation == "eager":
        wanted["output_attentions"] = True
    try:
        return model(**inputs, **wanted)
    except (TypeError, ValueError):
        # Some have no cache to leave out, others no attention to hand out.
        return model(**inputs, output_hidden_states=True)


@dataclass(eq=False)
class _Seen:
    """A softmax over keys, [batch, head, query, key], with the products before and after it."""

    probability: Tensor
    logit: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None

    def of(self, sample: int, start: int, stop: int) -> Pattern:
        """Return one sample's real tokens."""
        kept = slice(start, stop)
        square = {
            name: None if each is None else _numpy(each[sample, :, kept, kept])
            for name, each in (("probability", self.probability), ("logit", self.logit))
        }
        rows = {
            name: None if each is None else _numpy(each[sample, :, kept])
            for name, each in (("query", self.query), ("key", self.key), ("value", self.value))
        }
        return Pattern(**square, **rows)  # type: ignore[arg-type]


@dataclass(eq=False)
class _Watch(TorchFunctionMode):
    """Sees every softmax over as many keys as there are tokens."""

    num_tokens: int
    num_samples: int
    seen: list[_Seen] = field(default_factory=list)
    _product: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            result = func(*args, **kwargs)
            self._fused(*args, **kwargs)
            return result
        if func in _SOFTMAX:
            given = args[0] if args else kwargs["input"]
            if given.dtype == torch.float64:
                # Models ask for float32 here, where the masks of float64 overflow.
                kwargs.pop("dtype", None)
            result = func(*args, **kwargs)
            self._softmax(given, result)
            return result
        result = func(*args, **kwargs)
        if func is torch.baddbmm or func is torch.Tensor.baddbmm:
            left, right = args[1:3] if len(args) > 2 else (kwargs["batch1"], kwargs["batch2"])
            self._multiplied(left, right, result)
        elif func in _PRODUCTS and len(args) == 2:
            self._multiplied(args[0], args[1], result)
        return result

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        n = self.num_tokens
        if query.ndim != 4 or query.shape[-2] != n or key.shape[-2] != n:
            return
        group = query.shape[1] // key.shape[1]
        logit = query @ key.repeat_interleave(group, 1).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            logit = logit.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        if attn_mask is not None:
            logit = logit.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logit + attn_mask
        self.seen.append(_Seen(logit.softmax(-1), logit, query, key, value))

    def _softmax(self, given: Tensor, result: Tensor) -> None:
        n = self.num_tokens
        whole = self._whole(result)
        if whole is None or whole.shape[-2] != n or whole.shape[-1] not in (n, n + 1):
            return
        logit = self._whole(given)
        with_sink = whole.shape[-1] == n + 1
        query, key = (None, None) if self._product is None else map(self._whole, self._product)
        # Where the largest of each row was taken off before, or a sink stands beside the keys, the logits are gone.
        if with_sink or (logit is not None and bool((logit.amax(-1) == 0).all())):
            logit = None
        self.seen.append(_Seen(whole[..., :n], logit, query, None if key is None else key.mT))
        self._product = None

    def _multiplied(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        n = self.num_tokens
        if result.ndim < 3:
            return
        if result.shape[-2:] == (n, n) and left.shape[-1] != n:
            self._product = left, right
        elif self.seen and self.seen[-1].value is None and left.shape[-2:] == (n, n):
            value = self._whole(right)
            if value is not None and value.shape[-2] == n:
                self.seen[-1].value = value

    def _whole(self, tensor: Tensor) -> Tensor | None:
        """Return [batch, head, …, …] also where batch and heads lie on one axis."""
        if tensor.ndim == 4 and tensor.shape[0] == self.num_samples:
            return tensor.detach()
        if tensor.ndim == 3 and tensor.shape[0] % self.num_samples == 0:
            return tensor.detach().reshape(self.num_samples, -1, *tensor.shape[1:])
        return None


def _is_a_pattern(tensor: Any) -> bool:
    """Whether the rows are probabilities: what linear attention hands out under the same name is not."""
    return isinstance(tensor, Tensor) and bool((tensor >= 0).all()) and bool((tensor.sum(-1) < 1 + 1e-5).all())


def _joined(handed_out: Tensor, seen: list[_Seen]) -> _Seen:
    """Return the softmax that gave these probabilities, and take it from the list; without one, them alone."""
    for index, each in enumerate(seen):
        if each.probability.shape == handed_out.shape and torch.equal(each.probability, handed_out):
            return seen.pop(index)
    return _Seen(handed_out)


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().numpy()
    return array
