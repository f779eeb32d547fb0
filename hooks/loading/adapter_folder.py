"""A folder or hub repository that holds a peft adapter (LoRA and its kin) and names the model that it belongs to."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from probe.errors import NotAvailable
from probe.hooks.loading.given_model import transformers_model


def adapter_config(where: str, *, local: bool, revision: str | None) -> Mapping[str, Any] | None:
    """Return what `adapter_config.json` says at a folder or hub id; None where there is none.

    Raises `NotAvailable` for an adapter that names no model, and where peft is not installed.
    """
    path: Any = Path(where) / "adapter_config.json"
    if not path.is_file():
        # Without peft a hub is not asked: what is no adapter needs no further request.
        if Path(where).is_dir() or not _has_peft():
            return None
        try:
            path = find_adapter_config_file(where, revision=revision, local_files_only=local)
        except (OSError, ValueError):
            # What is no name of a repository, or cannot be reached, is told by whoever loads the model.
            path = None
    if path is None:
        return None
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotAvailable(f"{where}: its adapter_config.json is no JSON: {error}") from error
    if not isinstance(said, dict) or not said.get("base_model_name_or_path"):
        raise NotAvailable(f"{where}: its adapter_config.json names no base_model_name_or_path, so no model")
    if not _has_peft():
        raise NotAvailable(f"{where} is a peft adapter of {said['base_model_name_or_path']}: install peft to load it")
    return said


def with_adapter(base: PreTrainedModel, where: str, *, local: bool, revision: str | None) -> PreTrainedModel:
    """Return `base` with the adapter in it; raises `NotAvailable` where the adapter's checkpoint lacks a tensor."""
    peft: Any = importlib.import_module("peft")
    options = {} if revision is None else {"revision": revision}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base, where, local_files_only=local, **options)
    # peft leaves at random, or at nothing, what a checkpoint lacks, and warns.
    missing = [str(each.message) for each in said if "missing adapter keys" in str(each.message)]
    if missing:
        raise NotAvailable(f"{where}: the adapter's checkpoint is not whole: {' '.join(missing[0].split()):.300}")
    return transformers_model(model)


def _has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None
