"""Where one sequence stands in a model, and what the model keeps of it, in whichever form its architecture has."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.continuation_repair import continuation_repair
from probe.hooks.sequence.host_cache import host_cache
from probe.hooks.sequence.memory_in_modules import memory_in_modules

Cache = Literal["device", "offload"]

_log = logging.getLogger("probe")

# Architectures that make what they keep themselves, in their first forward.
_MAKE_THEIR_OWN = ("rwkv", "xlstm", "minimax")


@dataclass(eq=False)
class decoding_state:
    """Where a sequence stands: its tokens so far, and what the model keeps of them."""

    cache: Any
    """transformers' cache, whose sliding layers keep only their window, and recurrent ones a state of constant size; or
    what the model made itself (RWKV, xLSTM, MiniMax), which is None before the first token."""
    tokens: Int[Tensor, "token"]
    """Every token that went in, on the model's device."""
    in_modules: list[Tensor | None] = field(default_factory=list)
    """What the model would keep in its modules (Recurrent Gemma); put there for the length of each forward."""
    prompt_tokens: int | None = None
    """Tokens of the prompt, those that are still to come included, where it is known."""
    prompt: str = ""
    """How the prompt went in, in words."""

    @property
    def num_tokens(self) -> int:
        """Tokens that went in."""
        return len(self.tokens)

    def tensors(self) -> list[Tensor]:
        """Everything that is kept, keys and values on the host included."""
        own = [] if isinstance(self.cache, list) or self.cache is None else [vars(self.cache)]
        layers = [vars(layer) for layer in getattr(self.cache, "layers", ())]
        shown = [{name: value for name, value in each.items() if name[0] != "_"} for each in (*own, *layers)]
        leaves = tree_leaves([shown, self.cache if isinstance(self.cache, list) else [], self.in_modules])
        return list({id(each): each for each in leaves if isinstance(each, Tensor)}.values())


def empty_state(model: PreTrainedModel, cache: Cache = "device") -> decoding_state:
    """A sequence that has not begun; with `offload` its keys and values will lie in the host's memory.

    On a CPU they do so anyway, and a recurrent state is of constant size and stays where it is; a message says where
    nothing is different. Raises `NotReproducible` for a model with a cache of its own that cannot lie there.
    """
    if cache not in get_args(Cache):
        raise UsageError(f"cache is {cache!r}; expected {', '.join(get_args(Cache))}")
    offload = cache == "offload"
    if offload and _computes_on_host(model):
        _log.info("%s: cache='offload' changes nothing on a CPU, whose memory is the host's", name_of(model))
        offload = False
    made: Any = None if makes_its_own(model) else (host_cache(model.config) if offload else _cache(model))
    if offload and not _grows(model, made):
        _log.info(
            "%s: cache='offload' changes nothing: what it keeps does not grow, and stays on the device", name_of(model)
        )
    elif offload and made is None:
        raise NotReproducible(f"{name_of(model)}: the cache that it makes itself cannot lie in the host's memory")
    state = decoding_state(made, torch.zeros(0, dtype=torch.long, device=input_device(model)))
    if made is not None and made.layers and not any(isinstance(layer, CacheLayerMixin) for layer in made.layers):
        made.layers.append(counting_layer(lambda: state.num_tokens))
    return state


@torch.no_grad()
def put_through(
    model: PreTrainedModel, state: decoding_state, tokens: Int[Tensor, "token"],
    repairs: Sequence[continuation_repair] = (), **options: Any,
) -> Any:  # fmt: skip
    """Put tokens through the model after those of `state`, which moves on; return the model's output.

    Where the forward raises, `state` may be left in the middle: `rollback` brings it back.
    """
    argument = _argument(model)
    with ExitStack() as stack:
        held = stack.enter_context(memory_in_modules(model, state.in_modules))
        for each in repairs:
            options.update(stack.enter_context(each.around(model, state.num_tokens, len(tokens))))
        output = model(input_ids=tokens[None], **{argument: state.cache}, use_cache=True, **options)
        state.in_modules = held()
    if makes_its_own(model):
        state.cache = _counting(getattr(output, argument))
    state.tokens = torch.cat([state.tokens, tokens])
    return output


def makes_its_own(model: PreTrainedModel) -> bool:
    """Whether the model makes what it keeps itself, in its first forward, and takes nothing else."""
    return model.config.get_text_config().model_type in _MAKE_THEIR_OWN


def recurs(model: PreTrainedModel) -> bool:
    """Whether any layer keeps a state of constant size, as far as transformers says."""
    if makes_its_own(model):
        return True
    return any(hasattr(layer, "recurrent_states") for layer in _cache(model).layers)


class counting_layer(DynamicLayer):  # type: ignore[misc]
    """Stands in a cache that cannot count tokens, and keeps nothing.

    MiniMax keeps the states of its linear layers elsewhere in its cache, and asks the first layer, whatever it is, how
    many tokens there were. Where no layer of a hybrid architecture attends, transformers finds none to ask.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        super().__init__()
        self._count = count

    def get_seq_length(self) -> int:
        """Tokens that went in before this forward, or with it."""
        return self._count()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As a layer that attends to all of them."""
        return self._count() + query_length, 0


def _counting(cache: Any) -> Any:
    layers = getattr(cache, "layers", None) or []
    attends = next((each for each in layers if each.is_initialized), None)
    if attends is not None:
        cache.layers = [each if each.is_initialized else counting_layer(attends.get_seq_length) for each in layers]
    return cache


def _argument(model: PreTrainedModel) -> str:
    """What the model's forward calls what it keeps."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params", "state") if name in takes), "past_key_values")


def _cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config)


def _grows(model: PreTrainedModel, cache: DynamicCache | None) -> bool:
    if cache is None:
        return bool(model.config.get_text_config().model_type == "minimax")
    return not cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def _computes_on_host(model: PreTrainedModel) -> bool:
    return input_device(model).type == "cpu"
