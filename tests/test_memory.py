"""A long prompt is traced in memory that grows like its length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Peak memory is a process's own, so each measurement has one.
READ = """
import json, resource, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
import probe
torch.set_num_threads(2)
torch.manual_seed(0)
length, statistics = int(sys.argv[1]), json.loads(sys.argv[2])
config = LlamaConfig(
    vocab_size=32000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=length,
)
model = probe.load(AutoModelForCausalLM.from_config(config))
trace = probe.trace(model, torch.randint(0, 32000, (length,)), statistics=statistics)
pooled = "entropy_max" in trace if statistics else None
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "pooled": pooled, "bytes": trace.dataset.nbytes}))
"""

EVERYTHING = [
    "log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass", "match_mass",
    "mean_distance", "distance_histogram", "received_mass", {"received_mass": {"horizon": 64}}, "attention_map",
    "top_keys", "key_norm", "value_norm", "residual_norm", "residual_max", "residual_median", "loss",
    "key_channel_energy", "key_spectrum", "key_neighbour_similarity", "key_layer_similarity", "value_layer_similarity",
    "window_mass", "sparse_shape_mass",
]  # fmt: skip


def read(length: int, statistics: list[object]) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", READ, str(length), json.dumps(statistics)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_a_prompt_of_16384_tokens_takes_less_than_a_gigabyte_and_a_half_beyond_the_models_own() -> None:
    alone = read(16_384, [])
    traced = read(16_384, EVERYTHING)
    print(f"the model alone {alone['peak'] / 1e9:.2f} GB, traced {traced['peak'] / 1e9:.2f} GB")
    assert traced["peak"] - alone["peak"] < 1.5e9
    assert traced["pooled"]


@pytest.mark.slow
def test_twice_the_length_takes_no_more_than_thrice_the_trace() -> None:
    short, long = read(4096, EVERYTHING), read(8192, EVERYTHING)
    assert long["bytes"] < 3 * short["bytes"]
