"""A key-value cache that lies in the host's memory, one layer at a time on the device."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

_GROWTH = 1.5


class host_layer(DynamicLayer):  # type: ignore[misc]
    """A layer whose keys and values lie on the host, and are put together on the device while it attends.

    Only what is new goes to the host, into room that grows by half; all of it comes back for each forward, so that the
    device holds one such layer's keys and values at a time, bit by bit what a cache on the device would hold.
    (transformers' own offloading moves whole layers both ways each time, needs CUDA, and after a forward that failed
    finds its first layer on the host.)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rooms: dict[str, Tensor] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note where attention happens, when the first keys come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (each[..., :0, :].to("cpu") for each in (key_states, value_states))
        self._rooms = {}
        self.is_initialized = True

    def update(
        self, key_states: Float[Tensor, "batch kv_head token channel"],
        value_states: Float[Tensor, "batch kv_head token value_channel"], *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Append to what lies on the host; return all of it on the device."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        whole = _behind(self.keys, key_states), _behind(self.values, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return whole

    def _appended(self, name: str, held: Tensor, new: Tensor) -> Tensor:
        length, more = held.shape[-2], held.shape[-2] + new.shape[-2]
        room = self._rooms.get(name)
        if room is None or room.shape[-2] < more:
            # Pinned memory is what a GPU copies from without a detour.
            shape, pinned = (*new.shape[:-2], int(more * _GROWTH), new.shape[-1]), new.device.type == "cuda"
            room = torch.empty(shape, dtype=new.dtype, device="cpu", pin_memory=pinned)
            room[..., :length, :].copy_(held)
            self._rooms[name] = room
        room[..., length:more, :].copy_(new)
        return room[..., :more, :]

    def offload(self) -> None:
        """Nothing: it lies there already."""

    def prefetch(self) -> None:
        """Nothing: `update` fetches."""


class host_hybrid_layer(host_layer, LinearAttentionLayer):  # type: ignore[misc]
    """A layer that both attends and recurs: keys and values on the host, the states of constant size on the device."""

    def __init__(self, number_of_states: int = 1) -> None:
        host_layer.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """By position the first keys and values, by name the first states, as transformers has it."""
        if kwargs:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)
        else:
            host_layer.lazy_initialization(self, *args)


def host_cache(config: PreTrainedConfig) -> DynamicCache:
    """transformers' cache for a model, its layers that grow without end on the host.

    Windows and recurrent states, which are of constant size, stay on the device.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_on_host(layer) for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = host_layer
    return cache


def _on_host(layer: Any) -> Any:
    if type(layer) is LinearAttentionAndFullAttentionLayer:
        return host_hybrid_layer(layer.number_of_states)
    return host_layer() if type(layer) is DynamicLayer else layer


def _behind(held: Tensor, new: Tensor) -> Tensor:
    """What is held and then what is new, on the device of the new."""
    length = held.shape[-2]
    whole = new.new_empty((*new.shape[:-2], length + new.shape[-2], new.shape[-1]))
    whole[..., :length, :].copy_(held, non_blocking=True)
    whole[..., length:, :].copy_(new)
    return whole
