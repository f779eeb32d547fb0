"""Where rotary frequencies depend on the length, a prompt in chunks is rotated as in one forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.hooks.models.huggingface import load

LONGROPE = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("scaling", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
@pytest.mark.parametrize("num_tokens", [16, 17, 40])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64])
def test_chunks_of_a_prompt_equal_the_whole(
    make: Any, tokens: Any, attention: Any, scaling: dict[str, Any], num_tokens: int, chunk_tokens: int
) -> None:
    def model() -> Any:
        rope = {"rope_theta": 100.0, "original_max_position_embeddings": 16, **scaling}
        return make("llama-gqa", "eager", max_position_embeddings=16, rope_parameters=rope)

    prompt = tokens(1, num_tokens)
    with torch.no_grad():
        expected = model().double()(input_ids=prompt, use_cache=False, output_attentions=True).attentions
    own = load(model())
    with torch.no_grad():
        # Dynamic scaling would remember this longer sequence.
        own.hf(input_ids=tokens(1, 60))
    with own.calls(attention):
        state = own.prefill(prompt[0, :-1].tolist(), chunk_tokens=chunk_tokens, whole=num_tokens)
        own.step(state, prompt[0, -1:].tolist())
    for (layer, _), found in attention.matrices(num_tokens).items():
        torch.testing.assert_close(found, expected[layer][0], rtol=0, atol=1e-5)
    assert not any(module._forward_hooks for module in own.hf.modules())
