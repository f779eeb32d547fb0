"""What must be the same for two runs to be one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import probe
from probe.casebook import Casebook
from probe.reader import Reading
from probe.workloads.sources import source_hashes


def run_identity(book: Casebook, provenance: Mapping[str, Any], reading: Reading, *, private: bool) -> dict[str, str]:
    """Return the casebook, the model, what reads it and what it reads, each as a name and a hash or a word."""
    # What is expected of a run, or published beside it, changes nothing in it.
    content = json.dumps(book.model_dump(mode="json", exclude={"expect", "published"}), sort_keys=True)
    identity = {"casebook": hashlib.sha256(content.encode()).hexdigest()}
    for key in ("model", "revision", "weights_sha256", "tokenizer_sha256", "dtype", "device"):
        identity[key] = str(provenance.get(key))
    identity["attention_implementation"] = str(provenance.get("attention_implementation"))
    # Where there is none, a run is the one that it was before these were known.
    for key in ("adapters", "device_map", "quantisation", "trust_remote_code"):
        if provenance.get(key) is not None:
            identity[key] = json.dumps(provenance[key], sort_keys=True)
    if provenance["backend"] != "huggingface":
        versions = provenance["versions"]
        identity["backend"] = f"{provenance['backend']} {versions.get(provenance['backend'])}"
    for package in ("longcontext-probe", "torch", "transformers"):
        identity[package] = probe.__version__ if package == "longcontext-probe" else version(package)
    identity |= reading.identity()
    if private:
        identity["private"] = "True"
    return identity | source_hashes(book.build_workload())
