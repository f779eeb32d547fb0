"""Stand between a transformers model and its attention function, and leave the model as it was."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.errors import NotReproducible
from probe.hooks.attention.prompt_chunk import plain_masks_left_out

# The loaded name stays part of ours, since transformers asks in places whether "flash" is in the name.
_PREFIX = "probe_over_"


class exchanged_name(str):
    """A name of ours for the attention `loaded`: it is looked up as ours, and equal to either.

    So a module that computes something else depending on the name of its attention goes on as it was loaded.
    """

    def __new__(cls, loaded: str) -> exchanged_name:
        """Make the name that `loaded` is exchanged for."""
        made = super().__new__(cls, _PREFIX + loaded)
        made.loaded = loaded
        return made

    loaded: str

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or self.loaded == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@dataclass(frozen=True, eq=False)
class own_attention:
    """The attention function that a module would have called as loaded."""

    function: Callable[..., Any]
    """The function."""
    config: Any
    """The configuration whose attention's name is exchanged."""

    @property
    def is_sdpa(self) -> bool:
        """Whether it is transformers' own SDPA attention."""
        return self.function is sdpa_attention_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it under the name that the model was loaded with."""
        # Flash attention reads the name again to choose its kernel.
        with _under_its_own_name(self.config):
            return self.function(*args, **kwargs)


# own function, module, query, key, value, mask, options -> output, weights
Redirection = Callable[[own_attention, nn.Module, Tensor, Tensor, Tensor, "Tensor | None", dict[str, Any]], Any]

_redirections: weakref.WeakKeyDictionary[nn.Module, Redirection] = weakref.WeakKeyDictionary()
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@contextmanager
def redirected(model: PreTrainedModel, to: Redirection) -> Iterator[None]:
    """Within the block every attention of the model's text decoder goes through `to`, which gets the model's own.

    The name of the attention in each configuration that the decoder's modules read is exchanged for one of ours, which
    both of transformers' registries know; afterwards each has the very name it had.
    """
    decoder = text_decoder(model)
    configs = _configs(model, decoder)
    names = [config._attn_implementation for config in configs]
    with ExitStack() as stack:
        for module in decoder.modules():
            _redirections[module] = to
            stack.callback(_redirections.pop, module, None)
        for config, name in zip(configs, names, strict=True):
            # The property's setter would also overwrite the sub-configurations, which may differ.
            stack.callback(setattr, config, "_attn_implementation_internal", name)
            config._attn_implementation_internal = _registered(name)
        yield


@contextmanager
def loaded_name(module: nn.Module) -> Iterator[None]:
    """Within the block a module that asks for the name of its attention reads the one that it was loaded with."""
    with _under_its_own_name(getattr(module, "config", None)):
        yield


@contextmanager
def masks_as_sdpa(model: PreTrainedModel, decoder: nn.Module) -> Iterator[None]:
    """Within the block transformers makes the masks that SDPA needs, and none where that needs none.

    For a model whose attention is computed by something else than what its configuration names.
    """
    configs = _configs(model, decoder)
    names = [config._attn_implementation_internal for config in configs]
    with ExitStack() as stack:
        for config, name in zip(configs, names, strict=True):
            stack.callback(setattr, config, "_attn_implementation_internal", name)
            config._attn_implementation_internal = _registered("sdpa")
        yield


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model that reads text: attention elsewhere (a vision tower) is left alone.

    Of an encoder-decoder it is the whole.
    """
    whole: nn.Module = model
    if getattr(model.config, "is_encoder_decoder", False):
        return whole
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    # Some models call the projection onto the vocabulary their decoder.
    return decoder if isinstance(decoder, nn.Module) and any(decoder.children()) else whole


def named(model: PreTrainedModel, name: str) -> None:
    """Have messages speak of the model by the name that it was asked for by."""
    _names[model] = name


def name_of(model: PreTrainedModel) -> str:
    """The name under which messages speak of the model: as it was asked for, or where it came from; and its class."""
    path = _names.get(model) or str(getattr(model.config, "_name_or_path", "") or "")
    name = Path(path).name if model not in _names and Path(path).is_dir() else path
    return f"{name} ({type(model).__name__})" if name else type(model).__name__


def loaded_attention(model: PreTrainedModel) -> str:
    """The name of the attention that the model was loaded with, within `redirected` too."""
    return str(model.config._attn_implementation).removeprefix(_PREFIX)


@contextmanager
def _under_its_own_name(config: Any) -> Iterator[None]:
    switched = getattr(config, "_attn_implementation_internal", None)
    if not isinstance(switched, str) or not switched.startswith(_PREFIX):
        yield
        return
    config._attn_implementation_internal = switched.removeprefix(_PREFIX)
    try:
        yield
    finally:
        config._attn_implementation_internal = switched


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    dropout: float | None = None, **options: Any,
) -> Any:  # fmt: skip
    # kvpress wraps every function that is registered when it is imported, and hands dropout over by position.
    if dropout is not None:
        options["dropout"] = dropout
    own = _own_function(module)
    to = _redirections.get(module)
    if to is None:
        return own(module, query, key, value, attention_mask, **options)
    return to(own, module, query, key, value, attention_mask, options)


def _registered(name: str | None) -> str | None:
    """Our name for the attention `name`, known to both of transformers' registries."""
    if name is None or name.startswith(_PREFIX):
        return name
    key = exchanged_name(name)
    AttentionInterface.register(key, _attend)
    # A name that the mask registry does not know gets no mask, which silently makes attention bidirectional.
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        own = ALL_MASK_ATTENTION_FUNCTIONS[name]
        AttentionMaskInterface.register(key, plain_masks_left_out(own) if name == "sdpa" else own)
    return key


def _own_function(module: nn.Module) -> own_attention:
    config: Any = module.config
    name = config._attn_implementation.removeprefix(_PREFIX)
    names = inspect.unwrap(type(module).forward).__globals__
    if name == "eager":
        function = names.get("eager_attention_forward")
    else:
        function = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS).get(name)
    if function is None:
        raise NotReproducible(f"{type(module).__name__}: its own attention function {name!r} could not be found")
    return own_attention(function, config)


def _configs(model: PreTrainedModel, decoder: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    waiting = [model.config, *(getattr(module, "config", None) for module in decoder.modules())]
    while waiting:
        config = waiting.pop()
        if config is None or id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
    return list(found.values())
