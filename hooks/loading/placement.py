"""Where a model's weights lie, and where they compute: on one device, over several, or offloaded to host and disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotAvailable, UsageError

_BY_ACCELERATE = ("auto", "balanced", "balanced_low_0", "sequential")


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that token ids go to: where the word embeddings compute.

    Weights that accelerate offloads lie on no device between two forwards, so the parameters do not say it. Raises
    `NotAvailable` for weights that were never loaded.
    """
    words = model.get_input_embeddings()
    for module in (words, model):
        for hook in _hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    first: Tensor | None = next(words.parameters(), None) if words is not None else None
    device = model.device if first is None else first.device
    if device.type == "meta":
        raise _never_loaded(model, "its weights were")
    return device


def placed(model: PreTrainedModel) -> dict[str, str] | None:
    """Return which part of the model lies where, as accelerate placed it; None for a model on one device alone."""
    where = {part: _place(device) for part, device in (getattr(model, "hf_device_map", None) or {}).items()}
    if len(set(where.values())) > 1:
        return where
    if any(True for _ in _offloaded(model)):
        return {"": f"offloaded, computed on {input_device(model)}"}
    return None


def chosen_map(asked: Any, device: torch.device | None) -> Any:
    """Return a device map in accelerate's form; raises `UsageError` for what is none, or stands beside a device."""
    if device is not None:
        raise UsageError("device and device_map cannot both be chosen: a map says where every part goes")
    if isinstance(asked, str) and asked.lstrip().startswith("{"):
        try:
            asked = json.loads(asked)
        except ValueError as error:
            raise UsageError(f"device_map is no JSON object: {error}") from None
    places = list(asked.values()) if isinstance(asked, Mapping) else [] if asked in _BY_ACCELERATE else [asked]
    for place in places:
        if place != "disk":
            _check_place(place)
    if isinstance(asked, Mapping) and not (asked and all(isinstance(part, str) for part in asked)):
        raise UsageError('device_map names the model\'s parts and where each one goes, such as {"": "cuda:0"}')
    return dict(asked) if isinstance(asked, Mapping) else asked


def check_parts(model: nn.Module, asked: Any) -> None:
    """Raise `UsageError` for a device map that names a part which the model does not have."""
    asked = json.loads(asked) if isinstance(asked, str) and asked.lstrip().startswith("{") else asked
    if not isinstance(asked, Mapping):
        return
    there = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    unknown = sorted(part for part in asked if part not in there)
    if unknown:
        parts = ", ".join(name for name, _ in model.named_children())
        raise UsageError(f"device_map names {unknown[0]!r}, which {type(model).__name__} does not have; it has {parts}")


def _check_place(place: Any) -> None:
    try:
        torch.device(place)
    except (RuntimeError, TypeError):
        raise UsageError(
            f"device_map: {place!r} is no device; expected {', '.join(_BY_ACCELERATE)}, a device such as cuda:1, cpu "
            "or disk, or a mapping of the model's parts to these"
        ) from None


def check_loaded(model: PreTrainedModel) -> None:
    """Raise `NotAvailable` naming the first weight that was never loaded: on `meta`, and offloaded by nobody."""
    held = dict(_offloaded(model))
    for name, tensor in model.named_parameters():
        if tensor.is_meta and _from(held, name) is None:
            raise _never_loaded(model, f"its weight {name} was")


def move(model: PreTrainedModel, device: torch.device, *, asked: bool) -> None:
    """Put a model on one device; where it cannot move, leave it, or raise `UsageError` where that was `asked`."""
    try:
        model.to(device)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if asked:
            reason = " ".join(str(error).split())
            raise UsageError(f"{type(model).__name__} cannot be put on {device}: {reason:.300}") from error


def state_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the model's state by name, in the order of names, each offloaded tensor brought alone."""
    held = dict(_offloaded(model))
    # A module that torch.compile wrapped has another name, and the same weights.
    state = model.state_dict()
    names = {name.replace("_orig_mod.", ""): name for name in state}
    for name, known_as in sorted(names.items()):
        value = state[known_as]
        found = _from(held, known_as) if isinstance(value, Tensor) and value.is_meta else value
        if found is None:
            raise _never_loaded(model, f"its weight {name} was")
        yield name, found


def _hooks(module: nn.Module | None) -> list[Any]:
    """Return accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else [hook, *getattr(hook, "hooks", ())]


def _weights(hook: Any) -> Mapping[str, Tensor] | None:
    return getattr(hook, "weights_map", None) if getattr(hook, "offload", False) else None


def _offloaded(model: nn.Module) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for hook in _hooks(module):
            if (weights := _weights(hook)) is not None:
                yield path, weights


def _from(held: Mapping[str, Mapping[str, Tensor]], name: str) -> Tensor | None:
    """Return an offloaded tensor from the map of the module that it belongs to, or of one around it."""
    parts = name.split(".")
    for stop in range(len(parts) - 1, -1, -1):
        weights = held.get(".".join(parts[:stop]))
        if weights is None:
            continue
        try:
            return weights[".".join(parts[stop:])]
        except KeyError:
            continue
    return None


def _place(where: Any) -> str:
    return str(torch.device(where)) if isinstance(where, int) else str(where)


def _never_loaded(model: nn.Module, what: str) -> NotAvailable:
    return NotAvailable(
        f"{type(model).__name__}: {what} never loaded (on the device 'meta'), so there is no model to run"
    )
