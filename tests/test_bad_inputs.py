"""What a user may give by mistake: exact all the same, or one sentence that says what is wrong, with its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.errors import NotReproducible, UsageError

SIZE = 61


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": SIZE, **sizes, **changes})).eval()


def gpt2(positions: int = 32) -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_positions=positions, n_embd=32, n_layer=2, n_head=4)).eval()


def words(size: int = SIZE, **special: str) -> Any:
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", **special)


def traced(model: Any, x: Any, **options: Any) -> probe.Trace:
    return probe.trace(model, x, statistics=["entropy", "span_mass"], **options)


@pytest.mark.parametrize("empty", ["", "   ", "\n", [], (), torch.zeros(0, dtype=torch.long), np.zeros(0, int)])
def test_a_prompt_of_nothing_is_refused(empty: Any) -> None:
    with pytest.raises(UsageError, match="has no tokens"):
        traced(probe.load(llama(), tokenizer=words()), empty)


def test_a_prompt_of_one_token_is_read() -> None:
    trace = traced(llama(), [5], max_new_tokens=3)
    assert np.asarray(trace["entropy"]).shape == (2, 4, 3)
    assert np.abs(np.asarray(trace["entropy"])[..., 0]).max() < 1e-7
    assert (trace.outcome.text_loss, len(trace.outcome.response_tokens)) == (None, 3)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        ([3, SIZE], f"token id {SIZE} of 'tokens' is outside LlamaForCausalLM's vocabulary of {SIZE}$"),
        ([-1, 3], "token id -1 of 'tokens' is outside"),
        (probe.Sample("x", (3, 4), answer_tokens=(99,)), "token id 99 of the answer of 'x' is outside"),
        (
            probe.Sample("x", (3, 4), spans=(probe.Span("needle", 1, 9),)),
            "span 'needle' of 'x' ends at 9, beyond",
        ),
        ([1.5, 2], "text, token ids or a sample is needed"),
        (["a", "b"], "text, token ids or a sample is needed"),
        (None, "text, token ids or a sample is needed"),
        (torch.zeros(1, 3, dtype=torch.long), "tokens must be one row of integers"),
        (torch.zeros(3), "tokens must be one row of integers"),
        ("some text", "has no tokenizer: give tokens"),
    ],
)
def test_what_is_no_prompt_of_the_model_is_refused(x: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        traced(llama(), x)


def test_a_tokenizer_with_more_tokens_than_the_model_is_named_where_it_matters() -> None:
    model = probe.load(llama(), tokenizer=words(100))
    assert traced(model, "w1 w60").sample.tokens == (1, 60)
    with pytest.raises(UsageError, match=r"token id 99 .* its tokenizer has 100, so the two do not fit"):
        traced(model, "w1 w99")
    added = words()
    added.add_special_tokens({"bos_token": "<s>"})
    with pytest.raises(UsageError, match=f"token id {SIZE} .* its tokenizer has 62"):
        traced(probe.load(llama(), tokenizer=added), "<s> w1")


def test_a_tokenizer_without_bos_is_read_as_it_is() -> None:
    trace = traced(probe.load(llama(), tokenizer=words()), "w3 w4 w5")
    assert trace.sample.tokens == (3, 4, 5)
    said = trace.provenance["tokenisation"]
    assert (said["adds_bos"], said["tokens_before"], said["tokens_after"]) == (False, [], [])


@pytest.mark.parametrize(("prompt", "new", "fits"), [(32, 1, True), (33, 1, False), (30, 3, True), (30, 4, False)])
def test_learned_positions_end_where_they_end(prompt: int, new: int, fits: bool) -> None:
    if fits:
        assert len(traced(gpt2(), [3] * prompt, max_new_tokens=new).outcome.response_tokens) == new
        return
    with pytest.raises(UsageError, match=f"has 32 learned positions; 'tokens' needs {prompt + new - 1}"):
        traced(gpt2(), [3] * prompt, max_new_tokens=new)


def test_a_longer_prompt_than_rotary_positions_were_trained_for_is_read() -> None:
    assert np.isfinite(np.asarray(traced(llama(max_position_embeddings=16), [3] * 40)["entropy"])).all()


def test_a_generation_config_that_samples_changes_nothing() -> None:
    plain, sampling = llama(), llama()
    sampling.generation_config.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=2.0, num_beams=4)
    answers = [traced(model, [3, 4, 5], max_new_tokens=8).outcome.response_tokens for model in (plain, sampling)]
    assert answers[0] == answers[1]


def test_dropout_of_a_model_in_training_mode_is_off() -> None:
    training = llama(attention_dropout=0.5).train()
    np.testing.assert_array_equal(traced(training, [3, 4, 5])["entropy"], traced(llama(), [3, 4, 5])["entropy"])


@pytest.mark.parametrize("where", ["mlp", "attention"])
def test_weights_that_are_not_finite_are_named(where: str) -> None:
    model = llama()
    part = model.model.layers[1]
    with torch.no_grad():
        (part.mlp.up_proj if where == "mlp" else part.self_attn.v_proj).weight[3, 4] = torch.nan
    failed = str(traced(model, [3, 4, 5]).outcome.failed)
    assert "layer 1, position 0" in failed
    assert "holds 1 value that is not finite" in failed


def test_padding_on_either_side_gives_what_each_sample_gives_alone() -> None:
    loaded = probe.load(llama())
    batch = torch.randint(3, SIZE, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    mask[1, 8:] = 0

    def attention(ids: Any, **options: Any) -> dict[tuple[int, int], torch.Tensor]:
        """By sample and layer, head × query × key: rotated by other positions, and the same all the same."""
        found: dict[tuple[int, int], list[Any]] = {}
        with loaded.calls(lambda sample, call: found.setdefault((sample, call.layer), []).append(call)):
            loaded.hf(ids, **options)
        weights = {}
        for where, calls in found.items():
            logits = torch.cat([call.query for call in calls], dim=1) @ calls[-1].key.mT * calls[-1].scale
            hidden = torch.ones_like(logits, dtype=torch.bool).triu(1)
            weights[where] = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        return weights

    together = attention(batch, attention_mask=mask)
    for sample, kept in ((0, slice(5, 12)), (1, slice(0, 8))):
        alone = attention(batch[sample : sample + 1, kept])
        for layer in (0, 1):
            torch.testing.assert_close(together[sample, layer], alone[0, layer], atol=2e-6, rtol=0)


@pytest.mark.parametrize(("hidden", "reason"), [((0, slice(0, 12)), "padding alone"), ((0, 4), "has holes")])
def test_padding_that_is_no_padding_is_refused(hidden: Any, reason: str) -> None:
    loaded, mask = probe.load(llama()), torch.ones(2, 12, dtype=torch.long)
    mask[hidden] = 0
    with pytest.raises(NotReproducible, match=reason), loaded.calls(lambda *_: None):
        loaded.hf(torch.full((2, 12), 5), attention_mask=mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model with the specimen's tokenizer."""
    specimen = probe.load("needle")
    llama(vocab_size=len(specimen.tokenizer)).save_pretrained(tmp_path / "saved")
    specimen.tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def played(folder: Path, *more: str) -> tuple[int, str]:
    """Run the command line, and return its exit code and what it said last."""
    out = str(folder.parent / "run")
    said = CliRunner().invoke(
        app, ["run", "first-look", "--limit", "1", "--lengths", "64", "--model", str(folder), "--out", out, *more]
    )
    lines = said.output.strip().splitlines()
    return said.exit_code, lines[-1] if lines else ""


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (("--device-map", "nowhere"), 2, "'nowhere' is no device"),
        (("--device-map", '{"nope": "cpu"}'), 2, "device_map names 'nope', which LlamaForCausalLM does not have"),
        (("--device-map", "auto", "--device", "cpu"), 2, "cannot both be chosen"),
        (("--dtype", "int4"), 2, "unknown dtype 'int4'"),
        (("--device", "cuda:99"), 2, "there is no device 'cuda:99'"),
    ],
)
def test_the_command_line_says_what_is_wrong(folder: Path, more: tuple[str, ...], code: int, reason: str) -> None:
    pytest.importorskip("accelerate")
    found, said = played(folder, *more)
    assert (found, reason in said) == (code, True), said


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused_before_anything_is_written(folder: Path) -> None:
    llama(vocab_size=100).save_pretrained(folder)
    code, said = played(folder)
    assert (code, "so the two do not fit" in said) == (2, True), said
    assert not (folder.parent / "run").exists()


def remote(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(folder / 'ran')!r}, 'w').close()\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )


def test_code_of_a_checkpoint_runs_only_where_it_is_allowed_and_is_then_on_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder.parent / "modules"))
    monkeypatch.syspath_prepend(str(folder.parent / "modules"))
    remote(folder)
    code, said = played(folder)
    assert (code, "--trust-remote-code" in said) == (3, True), said
    casebook = folder.parent / "mine.yaml"
    casebook.write_text(
        f"name: mine\nquestion: Does it run?\nmodel: {folder}\n"
        "workload:\n  needle:\n    lengths: [64]\n    samples: 1\n"
        "stages:\n  - name: one\n    conditions:\n      plain:\n        role: baseline\n"
    )
    said = CliRunner().invoke(app, ["run", str(casebook), "--out", str(folder.parent / "other")])
    assert said.exit_code == 3, said.output
    assert not (folder / "ran").exists()
    code, said = played(folder, "--trust-remote-code")
    assert code == 0, said
    assert (folder / "ran").exists()
    record = json.loads((folder.parent / "run" / "run.json").read_text())
    assert record["provenance"]["trust_remote_code"].startswith("mine.py (SHA-256 ")
    assert "trust_remote_code" in record["identity"]
    report = (folder.parent / "run" / "report.html").read_text()
    assert "Code of the model" in report
    assert "mine.py (SHA-256" in report
