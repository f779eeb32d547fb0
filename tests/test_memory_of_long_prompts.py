"""A trace is written as the prompt goes through: memory holds the model, its cache and little more, however long."""

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
asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=asked["vocabulary"], hidden_size=asked["heads"] * asked["channel"],
    intermediate_size=asked["heads"] * asked["channel"], num_hidden_layers=asked["layers"],
    num_attention_heads=asked["heads"], num_key_value_heads=2,
    max_position_embeddings=asked["length"],
)
model = probe.load(AutoModelForCausalLM.from_config(config))
tokens = torch.randint(0, asked["vocabulary"], (asked["length"],))
options = {"statistics": asked["statistics"], "queries_and_keys": asked["vectors"]}
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = rss()
trace = probe.trace(model, tokens, out=asked["out"], pool_tokens=asked["pool_tokens"], **options)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
cache = 2 * asked["layers"] * 2 * asked["channel"] * asked["length"] * 4
print(json.dumps({
    "before": before, "peak": peak, "cache": cache, "pooled": "query_block" in trace["entropy"].dims,
    "loss": float(trace["loss"].mean()), "length": len(trace.sample),
}))
"""

CORE = [
    "log_sum_exp", "entropy", "max_probability", "max_logit", "sink_mass", "recent_mass", "offset_mass", "match_mass",
    "mean_distance", "distance_histogram", "received_mass", "attention_map", "top_keys", "key_norm", "value_norm",
    "residual_norm", "residual_max", "residual_median", "loss",
]  # fmt: skip


def read(out: Path, length: int, **asked: object) -> dict[str, float]:
    given = {
        "layers": 1, "heads": 4, "channel": 16, "vocabulary": 100, "threads": 2, "statistics": CORE, "vectors": None,
        "pool_tokens": None, "length": length, "out": str(out / str(length)), **asked,
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(given["threads"])}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(given)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{length} tokens: {(told['peak'] - told['before'] - told['cache']) / 2**20:.0f} MiB above model and cache")
    return told


@pytest.mark.parametrize(
    # The square of 8192 tokens is a gigabyte in these four heads, and a quarter of the work of 16,384.
    ("few_tokens", "many_tokens"),
    [(2048, 8192), pytest.param(4096, 16_384, marks=pytest.mark.slow)],
)
def test_memory_grows_by_the_cache_and_little_more(tmp_path: Path, few_tokens: int, many_tokens: int) -> None:
    few = ["entropy", "max_probability", "received_mass", "attention_map", "key_norm", "residual_norm", "loss"]
    short, long = (read(tmp_path, length, statistics=few) for length in (few_tokens, many_tokens))
    grown = long["peak"] - short["peak"] - (long["cache"] - short["cache"])
    assert grown / (many_tokens - few_tokens) < 16_000, f"{grown / 2**20:.0f} MiB beyond the cache"
    assert not long["pooled"]


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_131072_tokens_take_at_most_2_gb_above_the_model_and_its_cache(tmp_path: Path) -> None:
    length = int(os.environ.get("PROBE_LONG_PROMPT", 131_072))
    told = read(
        tmp_path, length, layers=4, heads=8, channel=64, vocabulary=32_000, threads=4, vectors=[2], pool_tokens="auto"
    )  # fmt: skip
    assert told["length"] == length
    assert told["pooled"]
    assert told["peak"] - told["before"] - told["cache"] <= 2e9
