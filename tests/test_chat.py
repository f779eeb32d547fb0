"""Conversations: the template's own text, exact spans, one beginning-of-sequence token, and thinking as spans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import probe
from probe.chat import chat_sample
from probe.errors import UsageError
from probe.thinking import thinking_spans
from probe.workloads.lexicon import CITIES, NEEDLE, NUMBERS, QUESTION, TEMPLATES

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if open_thinking %}<think>\n{% endif %}"
    "{% endif %}"
)
TRIMS = CHATML.replace("{{ message.content }}", "{{ message.content | trim }}")
DROPS_THINKING = CHATML.replace("{{ message.content }}", "{{ message.content.split('</think>')[-1] }}")
SHOUTS = CHATML.replace("{{ message.content }}", "{{ message.content | upper }}")
REFUSES = "{{ raise_exception('only tools may speak') }}"
MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "  Where is Zurich? "},
    {"role": "assistant", "content": "<think>far off, it is</think>In Zurich."},
    {"role": "user", "content": "And Basel?"},
]


def tokenizer(template: str | None = CHATML, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([NEEDLE, QUESTION, *TEMPLATES, *CITIES, *NUMBERS], trainer)
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    return probe.load(LlamaForCausalLM(config), tokenizer=tokenizer)


def spoken(sample: probe.Sample, name: str, tokenizer: Any) -> str:
    span = sample.span(name)
    return str(tokenizer.decode(sample.tokens[span.start : span.stop]))


def test_messages_go_through_the_template_with_a_span_each() -> None:
    made = tokenizer()
    sample = chat_sample(made, MESSAGES)
    expected = made.apply_chat_template(MESSAGES, tokenize=True, add_generation_prompt=True)
    assert list(sample.tokens) == list(getattr(expected, "input_ids", expected["input_ids"]))
    assert sample.tokens.count(made.bos_token_id) == 1
    for i, message in enumerate(MESSAGES):
        name = f"{message['role']}_{i}"
        assert spoken(sample, name, made) == message["content"]
    assert sample.facts["messages_without_span"] == []
    assert len(sample.facts["chat_template_sha256"]) == 64


def test_a_last_word_of_the_assistants_begins_no_turn() -> None:
    made = tokenizer()
    assert chat_sample(made, MESSAGES[:3]).text.endswith("In Zurich.<|im_end|>\n")
    assert chat_sample(made, MESSAGES).text.endswith("<|im_start|>assistant\n")
    assert chat_sample(made, MESSAGES, open_thinking=True).text.endswith("<|im_start|>assistant\n<think>\n")


def test_a_content_that_is_trimmed_keeps_its_span() -> None:
    made = tokenizer(TRIMS)
    assert spoken(chat_sample(made, MESSAGES), "user_1", made) == "Where is Zurich?"


@pytest.mark.parametrize(("template", "lost"), [(DROPS_THINKING, 1), (SHOUTS, 0)])
def test_a_content_that_the_template_changes_is_never_given_a_wrong_span(template: str, lost: int) -> None:
    made = tokenizer(template)
    sample = chat_sample(made, MESSAGES)
    names = {f"{message['role']}_{i}" for i, message in enumerate(MESSAGES)}
    assert {span.name for span in sample.spans} | set(sample.facts["messages_without_span"]) == names
    assert len(sample.facts["messages_without_span"]) >= lost
    for i, message in enumerate(MESSAGES):
        name = f"{message['role']}_{i}"
        if name not in sample.facts["messages_without_span"]:
            assert spoken(sample, name, made).lower() == message["content"].lower()


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (None, MESSAGES, "no chat template|has none"),
        (REFUSES, MESSAGES, "refuses these messages: only tools may speak"),
        (CHATML, [{"role": "user"}], "message 0 needs a role and a content"),
        (CHATML, [{"role": "user", "content": ["an", "image"]}], "message 0 needs a role and a content"),
    ],
)
def test_what_is_no_conversation_is_refused(template: str | None, messages: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        probe.trace(model(tokenizer(template)), messages)


def test_a_trace_of_messages_records_template_and_thinking() -> None:
    made = tokenizer()
    trace = probe.trace(model(made), MESSAGES, statistics=["entropy", "span_mass"], max_new_tokens=2)
    sample = trace.sample
    assert spoken(sample, "thinking", made) == "far off, it is"
    assert "thinking" in trace["span_mass"].coords["span"].values
    assert trace.provenance["tokenisation"]["adds_bos"]
    assert trace.provenance["tokenisation"]["chat_template_sha256"] == sample.facts["chat_template_sha256"]
    hidden = probe.trace(model(made), MESSAGES, statistics=["span_mass"], private=True)
    assert {span.name for span in hidden.sample.spans} >= {"thinking", "user_1"}


def test_whether_a_beginning_of_sequence_token_is_added_is_recorded() -> None:
    for adds in (True, False):
        trace = probe.trace(model(tokenizer(None, adds_bos=adds)), "In Zurich.", statistics=["entropy"])
        assert trace.provenance["tokenisation"]["adds_bos"] == adds
        assert (trace.sample.tokens[0] == 0) == adds


def test_thinking_in_an_answer_has_a_span_also_where_the_prompt_opened_it() -> None:
    from probe.outcome import Outcome
    from probe.thinking import with_thinking_answer

    made = tokenizer()
    sample = chat_sample(made, MESSAGES[:2], open_thinking=True)
    answer = made("so it is</think>Zurich<think>again", add_special_tokens=False)["input_ids"]
    outcome = with_thinking_answer(Outcome(response_tokens=tuple(answer)), sample, made)
    whole = (*sample.tokens, *answer)
    texts = [made.decode(whole[span.start : span.stop]) for span in outcome.response_spans]
    assert texts == ["so it is", "again"]
    assert outcome.response_spans[0].start == len(sample.tokens)
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_markers_are_text_to_a_tokenizer_that_does_not_know_them() -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert thinking_spans(plain, plain("<think> a </think>")["input_ids"]) == ()


@pytest.mark.parametrize("length", [64, 200])
def test_a_needle_in_a_chat_keeps_its_spans_its_length_and_its_answer(length: int) -> None:
    made = tokenizer(TRIMS)
    for sample in probe.needle(lengths=(length,), depths=(0.0, 0.5, 1.0), samples=2, chat="auto").build(made):
        value = spoken(sample, "needle_value", made).strip()
        assert value == sample.answer.strip()
        assert spoken(sample, "needle", made).strip().startswith("The magic number for ")
        whole = made.decode(sample.tokens)
        assert whole == sample.text
        assert whole.startswith("<s><|im_start|>user\n")
        assert "?<|im_end|>\n<|im_start|>assistant\nThe magic number for " in whole
        assert sample.tokens.count(made.bos_token_id) == 1
        assert length - 40 <= len(sample.tokens) <= length
        assert made.decode((*sample.tokens, *sample.answer_tokens)) == whole + sample.answer
        assert "chat_template_sha256" in sample.facts


def test_auto_leaves_a_tokenizer_without_template_alone_and_always_refuses_it() -> None:
    made, options = tokenizer(None), {"lengths": (100,), "depths": (0.5,), "samples": 1}
    assert list(probe.needle(**options, chat="auto").build(made)) == list(probe.needle(**options).build(made))
    with pytest.raises(UsageError, match="has no chat template"):
        list(probe.needle(**options, chat="always").build(made))
