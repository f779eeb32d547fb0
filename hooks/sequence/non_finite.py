"""Where a model first computes a value that is not finite (NaN or infinity), in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.prefill import prefill
from probe.hooks.sequence.residual_stream import decoder_layers

# How transformers' layers call the part that is not attention.
_MLP = re.compile(r"mlp|moe|ffn|feed_?forward|experts")
_MOST_NAMED = 3


def first_non_finite(model: HuggingFaceModel, tokens: Sequence[int], *, chunk_tokens: int = 2048) -> str | None:
    """Say where the tokens first give a value that is not finite, and which weights hold any; None if nowhere.

    The tokens go through in chunks, and every module's input is judged before its output: one bad key turns all rows
    of a masked attention into NaN (0·NaN), so only what is first in the order of execution tells anything. In a chunk,
    the position is the first one that is bad there. Not to be called within `calls`, whose block would see the tokens
    once more; within an intervention it reads the model as changed. Raises `NotReproducible` as `calls` does.
    """
    state, found = model.prefill([]), list[str]()

    def judge(start: int, logits: Tensor) -> None:
        if not found and (bad := _first_bad_row(logits)) is not None:
            token = int((~logits[bad].isfinite()).nonzero()[0])
            found.append(f"in the logits at position {start + bad}, first in that of token {token}")

    for start in range(0, len(tokens), chunk_tokens):
        chunk = tokens[start : start + chunk_tokens]
        with ExitStack() as stack:
            for module, place in _places(model):
                look = partial(_look, found, place, chunk, start)
                before = module.register_forward_pre_hook(partial(_before, look), with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(module.register_forward_hook(partial(_after, look)).remove)
            stack.enter_context(model.attention_in_parts())
            prefill(model.hf, state, chunk, chunk_tokens=chunk_tokens, on_logits=judge)
        if found:
            return "; ".join([found[0], *_bad_weights(model.hf)])
    return None


_Place = tuple[int | None, str]  # layer and part of it; or no layer, and what the module is called


def _places(model: HuggingFaceModel) -> Iterator[tuple[nn.Module, _Place]]:
    attention = [module for each in model.attention_layers.values() if (module := each.module()) is not None]
    inside = {id(module) for each in attention for module in each.modules()}
    heads = {id(each) for each in attention}
    layer_of: dict[int, _Place] = {}
    for index, layer in enumerate(decoder_layers(model.hf, attention)):
        for path, module in layer.named_modules():
            child, _, rest = path.partition(".")
            if id(module) in inside:
                part = "its attention" if id(module) in heads else f"its attention's {path.rpartition('.')[2]}"
            elif _MLP.search(child):
                part = f"its MLP's {rest}" if rest else "its MLP"
            else:
                part = f"its {path}" if path else "it"
            layer_of[id(module)] = index, part
    words, logits = model.hf.get_input_embeddings(), model.hf.get_output_embeddings()
    for path, module in model.hf.named_modules():
        # What the output embedding returns are the logits, which are judged as such.
        if module is not logits and path:
            yield module, layer_of.get(id(module), (None, "" if module is words else path))


def _before(look: Any, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    look("before", args[0] if args else kwargs.get("hidden_states"))


def _after(look: Any, _module: nn.Module, _args: Any, output: Any) -> None:
    look("after", output[0] if isinstance(output, tuple | list) and output else output)


def _look(found: list[str], place: _Place, chunk: Sequence[int], start: int, when: str, value: Any) -> None:
    """Note where `value` is first not finite; what is not batch × token × channel is left to the module around it."""
    if found or not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 3:
        return
    if value.shape[:2] != (1, len(chunk)) or (bad := _first_bad_row(value[0])) is None:
        return
    (layer, part), position = place, start + bad
    if layer is not None:
        found.append(f"in layer {layer}, position {position}, {when} {part}")
    elif part:
        found.append(f"at position {position}, {when} {part}")
    else:
        found.append(f"in the embedding of token {chunk[bad]} at position {position}")


def _first_bad_row(rows: Float[Tensor, "token channel"]) -> int | None:
    if _all_finite(rows):
        return None
    return int((~rows.isfinite()).any(dim=-1).nonzero()[0])


def _all_finite(values: Tensor) -> bool:
    # NaN goes through aminmax, which makes no copy of what may be gigabytes.
    return values.numel() == 0 or bool(torch.stack(values.detach().aminmax()).isfinite().all())


def _bad_weights(model: nn.Module) -> list[str]:
    """What there is to say of weights that hold NaN or infinity, the first of them by name."""
    said = []
    for name, weight in model.named_parameters():
        # In eight bits a value is a code, which its module scales.
        if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2 or _all_finite(weight):
            continue
        bad = int((~weight.detach().isfinite()).sum())
        said.append(f"{name} holds {bad} {'value that is' if bad == 1 else 'values that are'} not finite")
    more = len(said) - _MOST_NAMED
    return said[:_MOST_NAMED] + ([f"and so do {more} more of its tensors"] if more > 0 else [])
