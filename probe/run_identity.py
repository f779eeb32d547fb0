"""What must be the same for two runs to be one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import probe
from probe.casebook import Casebook
from probe.plan import Played
from probe.private import withheld_sample
from probe.reader import Reading
from probe.sample import Sample
from probe.storage import store
from probe.workloads.sources import source_hashes


def run_identity(book: Casebook, provenance: Mapping[str, Any], reading: Reading, *, private: bool) -> dict[str, str]:
    """Return the casebook, the model, what reads it and what it reads, each as a name and a hash or a word."""
    # What is expected of a run, or published beside it, changes nothing in it.
    content = json.dumps(book.model_dump(mode="json", exclude={"expect", "published"}), sort_keys=True)
    identity = {"casebook": hashlib.sha256(content.encode()).hexdigest(), "model": str(provenance.get("model"))}
    identity |= model_identity(provenance) | reading.identity()
    if private:
        identity["private"] = "True"
    return identity | source_hashes(book.build_workload())


def model_identity(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what a model is and what runs it, whatever it is called."""
    identity = {}
    for key in ("revision", "weights_sha256", "tokenizer_sha256", "dtype", "device"):
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
    return identity


def unit_of(
    run: Mapping[str, str],
    stage: str,
    condition: Played,
    sample: Sample,
    requests: list[dict[str, Any]],
    *,
    private: bool,
) -> str:
    """Return the id of the unit in which a condition of a stage reads a sample, the same in every run that is `run`."""
    # A private sample's own JSON says less of what it is, so that the casebook has to.
    of_run = dict(run) if private else {**run, "casebook": ""}
    sample = withheld_sample(sample) if private else sample
    identity = {
        "run": of_run,
        "stage": stage,
        "condition": {"name": condition.name, **condition.facts()},
        "sample": sample.to_json(),
        "requests": requests if condition.capture else [],
    }
    draw = "" if condition.draw is None else f"-{condition.draw}"
    return store.unit_id(f"{condition.name}{draw}-{sample.name}", identity)
