"""With an intervention on, a prompt of 32,768 tokens takes memory linear in it, as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "nothing": None,
    "limit_distance": {"window": 1024},
    "self_extend": {"group": 8, "window": 512},
    "yarn": {"factor": 4.0, "training_length": 2048},
    "temperature": {"tau": 0.5},
    "snapkv": {"budget": 1024},
    "keep_sinks_and_recent": {"budget": 1024, "num_first": 4},
    "cap_logits": {"cap": 20.0},
    "slide_state": {"window": 64},
}
"""One intervention of each kind, with its fields: positions, sharpness, logits, cache, recurrent state."""
SHORT, LONG = 8192, 32_768
MOST_A_TOKEN = 6000
"""Bytes for each further token, its 256 in the cache included: about twice what was measured. One number for each pair
of tokens, in one byte, would be 41,000."""

# Peak memory is a process's own, so each measurement has one.
READ = """
import contextlib, json, resource, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Mamba2Config
import probe
from probe.hooks.intervention import Intervention
name, fields, length = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
attends = LlamaConfig(
    vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=length,
)
recurs = Mamba2Config(
    vocab_size=100, hidden_size=32, num_hidden_layers=1, state_size=16, num_heads=4, head_dim=16, n_groups=1,
    chunk_size=64, expand=2,
)
model = probe.load(AutoModelForCausalLM.from_config(recurs if name == "slide_state" else attends).eval())
tokens = torch.randint(0, 100, (length,)).tolist()
def read(number):
    with torch.no_grad(), Intervention.from_json({name: fields})(model) if fields else contextlib.nullcontext():
        model.step(model.prefill(tokens[: number - 1], chunk_tokens=2048), tokens[number - 1 : number])
read(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read(length)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def grown(name: str, length: int) -> int:
    """Return by how many bytes the largest memory grows over a short prompt's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps([name, KINDS[name], length])],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.parametrize("name", KINDS)
def test_memory_grows_with_the_prompt_and_not_with_its_square(name: str) -> None:
    short, long = grown(name, SHORT), grown(name, LONG)
    each = (long - short) / (LONG - SHORT)
    print(f"{name}: {short / 2**20:.0f} MiB at {SHORT} tokens, {long / 2**20:.0f} MiB at {LONG}, {each:.0f} bytes each")
    assert each < MOST_A_TOKEN
