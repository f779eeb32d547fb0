"""What leaves a cache for good: over decoded tokens, a reader's way back, new prompts, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.attention.eviction import FOREVER, Kept, evicted
from probe.hooks.full_and_streaming_heads import full_and_streaming_heads
from probe.hooks.heavy_hitters import heavy_hitters
from probe.hooks.keep_sinks_and_recent import keep_sinks_and_recent
from probe.hooks.key_norm import key_norm
from probe.hooks.sequence.sample_read import reading
from probe.hooks.snapkv import snapkv
from probe.hooks.tova import tova
from probe.kernels.attention_output import attention_output
from probe.kernels.call import Call
from probe.sample import Sample, Span
from tests.interventions.dense_model import MODELS, dense_logits, tokens

PROMPT, NEW = 40, 9
POLICIES = [
    snapkv(12, window=4),
    snapkv(12, window=4, last_token="full"),
    snapkv(0.5, window=9, kernel=3, pool="max", group="max"),
    key_norm(10, layers=[1]),
    key_norm(0.4, layers=[1], last_token="full"),
    heavy_hitters(12),
    heavy_hitters(0.3, recent=0.25),
    heavy_hitters(12, prompt="whole"),
    heavy_hitters(0.3, recent=0, prompt="whole"),
    tova(12),
    tova(0.3, protect_last=True),
    tova(12, prompt="whole"),
    tova(11, prompt="whole", protect_last=True),
]
EVERY = [
    *POLICIES,
    keep_sinks_and_recent(12),
    keep_sinks_and_recent(0.3, positions="text"),
    full_and_streaming_heads([(0, 1), (1, 0)], 0.3),
    full_and_streaming_heads([(1, 0)], 0.6, budget_of="all_heads"),
]


def definition_of(policy: Any, model: Any, prompt: int) -> Any:
    module = importlib.import_module(f"tests.interventions.definitions.{type(policy).__name__}")
    return module.definition(policy, model, prompt)


def sample(ids: list[int], answer: list[int]) -> Sample:
    return Sample("one", tuple(ids), answer_tokens=tuple(answer))


def decoded(model: Any, ids: list[int], prompt: int = PROMPT, chunk_tokens: int = 2048) -> torch.Tensor:
    """Logits from the prompt's last token on, each later token put through alone."""
    one = probe.load(model)
    state = one.prefill(ids[: prompt - 1], chunk_tokens=chunk_tokens, whole=prompt)
    return torch.cat([one.step(state, [each]) for each in ids[prompt - 1 :]])


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_decoded_tokens_agree_with_the_definition(policy: Any) -> None:
    architecture = "gpt2" if isinstance(policy.budget, float) else "llama"
    model, ids = MODELS[architecture](), tokens(PROMPT + NEW, seed=3)
    expected = dense_logits(model, ids, definition_of(policy, model, PROMPT))[PROMPT - 1 :]
    plain = decoded(model, ids)
    with policy(model):
        found = decoded(model, ids)
        pieces = decoded(model, ids, chunk_tokens=7)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(pieces, found, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("chunk_tokens", [2048, 7])
@pytest.mark.parametrize(
    "policy", [snapkv(12, window=4, question="unseen"), key_norm(9, layers=[1], question="unseen")]
)
def test_what_is_kept_before_the_question_does_not_know_it(policy: Any, chunk_tokens: int) -> None:
    """As after a prompt that ends where the question begins, and is read whole."""
    model, ids, begins = MODELS["llama"](), tokens(PROMPT + NEW, seed=3), PROMPT - 11
    prompt = Sample("one", tuple(ids[:PROMPT]), (Span("question", begins, PROMPT),))
    before = dataclasses.replace(policy, question="seen", last_token="full")
    expected = dense_logits(model, ids, definition_of(before, model, begins))[PROMPT - 1 :]
    with policy(model), reading(prompt):
        found = decoded(model, ids, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_an_unseen_question_needs_its_span() -> None:
    policy, model = key_norm(9, question="unseen"), probe.load(MODELS["llama"]())
    with pytest.raises(
        UsageError, match="key_norm: question unseen needs a span `question`, and sample 'one' has none"
    ):
        policy.check(model, sample(tokens(30), []))
    with policy(model), pytest.raises(UsageError, match="no sample is being read"):
        model.prefill(tokens(30))
    with pytest.raises(UsageError, match="last_token full and question unseen contradict"):
        key_norm(9, question="unseen", last_token="full")


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_a_reader_goes_back_to_the_prompts_end(policy: Any) -> None:
    """A right answer that went through and was taken back leaves no trace, and reads as if it had been decoded."""
    model = MODELS["llama"]()
    ids, answer = tokens(PROMPT, seed=4), tokens(5, seed=5)
    with policy(model):
        alone = probe.trace(model, sample(ids, []), statistics=[], max_new_tokens=4, check=False)
        both = probe.trace(model, sample(ids, answer), statistics=[], max_new_tokens=4, check=False)
        steps = decoded(model, [*ids, *answer[:-1]])
    assert both.outcome.response_tokens == alone.outcome.response_tokens
    expected = steps.log_softmax(-1)[torch.arange(5), answer]
    torch.testing.assert_close(torch.tensor(both.outcome.answer_log_probability), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_each_prompt_begins_anew(policy: Any) -> None:
    model = MODELS["qwen3"]()
    first, second = tokens(PROMPT + 3, seed=6), tokens(PROMPT + 3, seed=7)
    with policy(model):
        alone = decoded(model, second)
    with policy(model):
        decoded(model, first)
        after = decoded(model, second)
    assert torch.equal(after, alone)


@pytest.mark.parametrize("policy", [snapkv(0.5, window=4), heavy_hitters(9), tova(0.3, prompt="whole")], ids=repr)
def test_generate_and_samples_of_a_padded_batch(policy: Any) -> None:
    """Padding on the left changes nothing; what each sample keeps is its own."""
    model = MODELS["llama"]()
    short, long = tokens(20, seed=8), tokens(31, seed=9)
    batch = torch.tensor([[0] * 11 + short, long])
    mask = torch.tensor([[0] * 11 + [1] * 20, [1] * 31])
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with policy(model), torch.no_grad():
        both = model.generate(batch, attention_mask=mask, **options)[:, 31:]
        alone = [
            model.generate(torch.tensor([each]), attention_mask=torch.ones(1, len(each)), **options)[0, len(each) :]
            for each in (short, long)
        ]
        steps = [
            decoded(model, [*each, *made.tolist()], len(each)) for each, made in zip((short, long), alone, strict=True)
        ]
    for row, made, logits in zip(both, alone, steps, strict=True):
        assert row.tolist() == made.tolist() == logits.argmax(-1)[:-1].tolist()


def test_what_went_before_is_refused_by_name() -> None:
    model = probe.load(MODELS["llama"]())
    state = model.prefill(tokens(12))
    with heavy_hitters(4)(model), pytest.raises(UsageError, match="heavy_hitters: layer 0 goes on after 12 tokens"):
        model.step(state, [1])


def test_another_sequence_of_the_same_length_is_refused() -> None:
    model = probe.load(MODELS["llama"]())
    with tova(4)(model):
        one = model.prefill(tokens(12, seed=1))
        model.prefill(tokens(12, seed=2))
        with pytest.raises(UsageError, match="tova: layer 0 goes on after 12 tokens"):
            model.step(one, [1])


def test_a_way_back_that_is_not_remembered_is_refused() -> None:
    model = probe.load(MODELS["llama"]())
    with snapkv(6, window=2)(model):
        state = model.prefill(tokens(12))
        model.step(state, [1])
        mark = model.mark(state)
        for token in (2, 3, 4):
            model.step(state, [token])
        model.rollback(state, mark)
        with pytest.raises(UsageError, match="goes back no further"):
            model.step(state, [2])


def test_a_share_needs_the_prompts_length() -> None:
    model = MODELS["llama"]()
    with tova(0.5)(model), torch.no_grad():
        first = model(torch.tensor([tokens(12)]), use_cache=True)
        # Of a prompt that began in the block its length stays known.
        model(torch.tensor([[1]]), past_key_values=first.past_key_values)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: snapkv(0), "snapkv: budget is at least one token"),
        (lambda: tova(-1), "tova: budget"),
        (lambda: heavy_hitters(2.5), "heavy_hitters: budget is a whole number of tokens"),
        (lambda: key_norm(True), "key_norm: budget"),
        (lambda: keep_sinks_and_recent(0), "keep_sinks_and_recent: budget"),
        (lambda: keep_sinks_and_recent(3), "no room for num_first"),
        (lambda: full_and_streaming_heads([], 0), "full_and_streaming_heads: budget"),
        (lambda: full_and_streaming_heads([], 3), "no room for num_first"),
        (lambda: full_and_streaming_heads([(1,)], 9), "heads are pairs"),
        (lambda: snapkv(8, window=8), "no room beside the window"),
        (lambda: snapkv(80, kernel=4), "kernel is an odd number"),
        (lambda: snapkv(80, pool="mean"), "pool is 'mean'"),
        (lambda: heavy_hitters(8, recent=2), "recent is a share"),
        (lambda: heavy_hitters(8, prompt="all"), "prompt is 'all'"),
        (lambda: tova(8, phase="decode"), "leave queries and phase out"),
        (lambda: key_norm(8, last_token="none"), "last_token is 'none'"),
    ],
)
def test_fields_are_refused_by_name(made: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made()


def test_shares_too_small_for_a_sample_are_refused_before_it_is_read() -> None:
    model, short = probe.load(MODELS["llama"]()), sample(tokens(30), [])
    with pytest.raises(UsageError, match=r"snapkv: budget 0\.5 is 15 of the 30 tokens of sample 'one'"):
        snapkv(0.5, window=20).check(model, short)
    with pytest.raises(UsageError, match=r"keep_sinks_and_recent: budget 0\.1 is 3"):
        keep_sinks_and_recent(0.1).check(model, short)
    with pytest.raises(UsageError, match="1 of 6 whole heads take more of a prompt of 30"):
        full_and_streaming_heads([(1, 0)], 0.1, budget_of="all_heads").check(model, short)


def test_a_model_of_windows_alone_is_refused_and_others_keep_theirs() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    for policy in (tova(4), full_and_streaming_heads([], 8)):
        with pytest.raises(UsageError, match="has a sliding window"), policy(model):
            pass
    with pytest.raises(UsageError, match="layers has"), tova(4, layers=[0])(model):
        pass


def test_memory_of_all_heads_together() -> None:
    """Of 6 heads one keeps 40 tokens; 24 a head on average leave the five others 20 (and a remainder) each."""
    policy = full_and_streaming_heads([(1, 0)], 24, budget_of="all_heads")
    whole = {0: torch.zeros(3, dtype=torch.bool), 1: torch.tensor([True, False, False])}
    assert policy._streaming(whole, 40) == (24 * 6 - 40) // 5 == 20


def test_a_query_left_without_keys_is_no_number() -> None:
    call = Call(
        0, torch.randn(2, 5, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8), 1.0,
        changes=(evicted(torch.tensor([[3, 3, 3, 3, FOREVER]], dtype=torch.int32)),),
    )  # fmt: skip
    with pytest.raises(ValueError, match="left no key"):
        attention_output(call)


@pytest.mark.parametrize("policy", [snapkv(12, window=4), heavy_hitters(9), heavy_hitters(24, prompt="whole"), tova(9)])
def test_a_learned_sink_takes_its_share(policy: Any) -> None:
    """Where it takes nearly all of one head, the head beside it chooses; where it takes nothing, nothing changes."""
    with_sink, without = kept_of_random_keys(policy, [9.0, -9.0, -90.0, -90.0]), kept_of_random_keys(policy, None)
    assert not torch.equal(with_sink[0], without[0])
    if not isinstance(policy, tova):
        assert torch.equal(with_sink[1], without[1])


def kept_of_random_keys(policy: Any, sink: list[float] | None) -> torch.Tensor:
    """`until` after a prompt of 40 random tokens, two query heads on each of two key-value heads."""
    torch.manual_seed(0)
    query, key, value = torch.randn(4, 40, 8), torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    sink_logit = None if sink is None else torch.tensor(sink)
    kept = Kept(torch.empty(2, 0, dtype=torch.int32), 40, None, value[:, 0])
    for first, stop in ((0, 39), (39, 40)):
        call = Call(0, query[:, first:stop], key[:, :stop], value[:, :stop], 0.5, first, sink_logit=sink_logit)
        until = torch.nn.functional.pad(kept.until, (0, stop - first), value=FOREVER)
        kept = policy.evict(dataclasses.replace(kept, until=until, decoded_from=39 if first else None), call)
    return kept.until
