"""No intervention makes a tensor that grows with the square of the prompt, in a forward or in a traced one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from probe.errors import UsageError
from probe.hooks.attention import eviction
from probe.kernels import attention_output, walk
from tests.interventions.test_every_change_of_calls import KINDS

LENGTHS = 512, 1024


class _largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator gave back with memory of its own."""

    elements = 0
    what = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            # Expanded masks have the shape and not the memory.
            if isinstance(each, Tensor) and each.untyped_storage().nbytes() // each.element_size() > self.elements:
                self.elements = each.untyped_storage().nbytes() // each.element_size()
                self.what = f"{function}: {tuple(each.shape)}"
        return result


def model(length: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=length,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", [name for name, module in KINDS.items() if module.EXAMPLES])
def test_largest_tensor_grows_no_faster_than_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks have a size of their own, whatever the prompt's: small ones hide no square behind them.
    monkeypatch.setattr(walk, "BLOCK_ELEMENTS", {"cpu": 1 << 15, "cuda": 1 << 15})
    monkeypatch.setattr(eviction, "BLOCK_ELEMENTS", 1 << 15)
    monkeypatch.setattr(attention_output, "_BLOCK", {True: (64, 128), False: (64, 128)})
    found = []
    for length in LENGTHS:
        made = model(length)
        ids = torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(0)).tolist()
        try:
            with KINDS[name].EXAMPLES[0](made), _largest() as largest:
                probe.trace(made, ids, statistics=["entropy"], max_new_tokens=1, check=False)
        except UsageError:
            pytest.skip("it does not apply to a model with rotary positions")
        found.append(largest)
    assert found[1].elements < LENGTHS[1] ** 2 / 2, found[1].what
    assert found[1].elements <= 2.2 * found[0].elements, found[1].what
