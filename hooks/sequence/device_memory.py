"""What a device's memory is taken up by, in words, where it ran out."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel

from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.decoding import decoding_state


def memory_sum(model: PreTrainedModel, state: decoding_state, error: str) -> str:
    """What was asked of the device, what is free there, and what weights and cache hold."""
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", error)
    said = [f"{asked.group(1)} were asked for" if asked else error.splitlines()[0] if error else "how much is not said"]
    device = input_device(model)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        said.append(f"{_in_words(free)} of {_in_words(total)} are free")
    tensors = [*model.parameters(), *model.buffers()]
    said.append(f"the weights hold {_in_words(sum(each.nbytes for each in tensors if each.device == device))}")
    here = sum(each.nbytes for each in state.tensors() if each.device == device)
    said.append(f"the cache of {state.num_tokens} tokens holds {_in_words(here)} there")
    return ", ".join(said)


def give_back(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device."""
    module = getattr(torch, device.type, None)
    if module is not None and hasattr(module, "empty_cache"):
        module.empty_cache()


def _in_words(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
