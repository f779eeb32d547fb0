"""ThinK where the contract does not look: chunks that come twice, a way back, several prompts, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.think_channels import think_channels
from tests.interventions.dense_model import llama, tokens


@pytest.mark.parametrize("last_token", ["cut", "full"])
def test_a_way_back_and_a_second_prompt_change_nothing(last_token: Any) -> None:
    model, ids = llama(), tokens(70)
    asked = think_channels(0.6, window=8, last_token=last_token)
    with asked(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1], chunk_tokens=20)
        mark = pieces.mark(state)
        several = pieces.step(state, [ids[-1], 5, 6])
        pieces.rollback(state, mark)
        one_by_one = torch.cat([pieces.step(state, [token]) for token in (ids[-1], 5, 6)])
        other = pieces.step(pieces.prefill(tokens(40, seed=1)[:-1]), [3])
    torch.testing.assert_close(one_by_one, several, rtol=1e-5, atol=1e-5)
    with asked(model):
        pieces = probe.load(model)
        alone = pieces.step(pieces.prefill(tokens(40, seed=1)[:-1]), [3])
    assert torch.equal(other, alone)


def test_decoded_keys_keep_their_channels() -> None:
    """All channels but one go: what the prompt's keys say is nearly nothing, what the decoded ones say is theirs."""
    model, ids = llama(), tokens(30)
    seen: dict[int, torch.Tensor] = {}
    with think_channels(0.9)(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1])
        with pieces.calls(lambda sample, call: seen.__setitem__(call.layer, call.key)):
            pieces.step(state, ids[-1:])
            pieces.step(state, [4])
    for key in seen.values():
        assert ((key[:, :30] == 0).sum(-1) == int(16 * 0.9)).all()
        assert (key[:, 30:] != 0).all()


def test_after_a_full_last_token_the_prompt_is_cut_with_it() -> None:
    model, ids = llama(), tokens(30)
    seen: dict[int, torch.Tensor] = {}
    plain = probe.load(model)
    own = plain.step(plain.prefill(ids[:-1]), ids[-1:])
    with think_channels(0.9, last_token="full")(model):
        pieces = probe.load(model)
        state = pieces.prefill(ids[:-1])
        assert torch.equal(pieces.step(state, ids[-1:]), own)
        with pieces.calls(lambda sample, call: seen.__setitem__(call.layer, call.key)):
            pieces.step(state, [4])
    for key in seen.values():
        assert ((key[:, :30] == 0).sum(-1) == int(16 * 0.9)).all()
        assert (key[:, 30:] != 0).all()


def test_a_batch_chooses_for_each_sample() -> None:
    model, long, short = llama(), tokens(40), tokens(25, seed=3)
    with think_channels(0.7, window=4)(model), torch.no_grad():
        alone = [model(torch.tensor([ids])).logits[0, -1] for ids in (long, short)]
        padded = torch.tensor([long, [0] * 15 + short])
        mask = torch.tensor([[1] * 40, [0] * 15 + [1] * 25])
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        both = model(padded, attention_mask=mask, position_ids=position).logits[:, -1]
    torch.testing.assert_close(both, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_entered_in_the_middle_of_a_prompt() -> None:
    model = llama()
    pieces = probe.load(model)
    state = pieces.prefill(tokens(20))
    with think_channels(0.5)(model), pytest.raises(UsageError, match=r"think_channels.*enter it before"):
        pieces.step(state, [1])


@pytest.mark.parametrize(("fields", "named"), [
    ({"ratio": 1.0}, "ratio"), ({"ratio": -0.1}, "ratio"), ({"ratio": 0.5, "window": 0}, "window"),
    ({"ratio": 0.5, "phase": "prefill"}, "phase"), ({"ratio": 0.5, "last_token": "half"}, "last_token"),
])  # fmt: skip
def test_fields_that_cannot_be(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"think_channels: {named}"):
        think_channels(**fields)
