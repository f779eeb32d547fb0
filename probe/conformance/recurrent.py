"""Recurrent states as the model itself holds them when it reads one token at a time, in float64."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

Array = np.ndarray[Any, Any]

EVERY: Final = 8
"""Tokens from one reading of the states to the next."""
STATISTICS: Final[list[Any]] = [
    {name: {"every": EVERY}} for name in ("state_mean", "state_variance", "state_max", "state_norm")
]
"""What is compared. Decays, gates and effective attention are what the toolkit recomputes each call's output from."""

States = dict[int, list[Tensor]]


@torch.no_grad()
def states_by_step(model: PreTrainedModel, tokens: list[int]) -> States:
    """Return by layer the states after every eighth token and the last, from a cache that grew token by token.

    Empty for models that keep their states elsewhere than in transformers' cache.
    """
    cache = DynamicCache(config=model.config)
    known = inspect.signature(model.forward).parameters
    name = next((each for each in ("cache_params", "past_key_values") if each in known), None)
    found: States = {}
    if name is None:
        return found
    for index, token in enumerate(tokens):
        model(input_ids=torch.tensor([[token]]), use_cache=True, **{name: cache})
        if (index + 1) % EVERY and index + 1 < len(tokens):
            continue
        held = {layer: getattr(each, "recurrent_states", None) for layer, each in enumerate(cache.layers)}
        for layer, states in (held | _in_modules(model)).items():
            state = next(iter(states.values()), None) if isinstance(states, dict) else states
            if isinstance(state, Tensor):
                found.setdefault(layer, []).append(state[0].double().clone())
    return found


def _in_modules(model: PreTrainedModel) -> dict[int, Tensor]:
    """Return states that modules keep themselves, as RecurrentGemma's do, by the number in the module's path."""
    found = {}
    for path, module in model.named_modules():
        state, number = getattr(module, "recurrent_states", None), re.search(r"\.(\d+)\.", path)
        if isinstance(state, Tensor) and number:
            found[int(number[1])] = state
    return found


def of_states(states: list[Tensor], num_heads: int, suffix: str = f"every_{EVERY}") -> dict[str, Array]:
    """Return the arrays of a layer's states, [state_head, position]; nothing where heads cannot be told apart."""
    if states[0].shape[0] != num_heads and num_heads != 1:
        return {}
    flat = torch.stack([state.double().reshape(num_heads, -1) for state in states], 1).numpy()
    arrays = {
        "state_mean": flat.mean(-1),
        "state_variance": flat.var(-1, ddof=1),
        "state_max": np.abs(flat).max(-1),
        "state_norm": np.linalg.norm(flat, axis=-1),
    }
    return {f"{name}_{suffix}": values for name, values in arrays.items()}
