"""Where a model's name leads: a specimen that ships with the toolkit, a folder, or the hub."""

from __future__ import annotations

import difflib
import importlib
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from probe.errors import NotAvailable


def specimens() -> dict[str, Path]:
    """The specimens that are there, by name."""
    rooms = [Path(each) / "specimens" for each in importlib.import_module("probe.casebooks").__path__]
    return {
        folder.name: folder
        for room in rooms
        if room.is_dir()
        for folder in sorted(room.iterdir())
        if (folder / "config.json").is_file()
    }


def find_model(name: str, *, trust_remote_code: bool = False, **options: Any) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer (None where it has none); `options` go to `from_pretrained`.

    A specimen or a folder is read without any network. Raises `NotAvailable` naming what was tried.
    """
    known = specimens()
    folder = known.get(name) or (Path(name) if Path(name).is_dir() else None)
    where: Mapping[str, Any] = {"pretrained_model_name_or_path": name if folder is None else str(folder)}
    local = folder is not None or not _hub_has_an_address()
    settings = {**where, "trust_remote_code": trust_remote_code, "local_files_only": local}
    if folder is not None and not (folder / "config.json").is_file():
        raise NotAvailable(f"{name}: the folder {folder} holds no config.json, so no model")
    revision = {"revision": options["revision"]} if options.get("revision") else {}
    try:
        with nullcontext() if folder is None else _without_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(**settings, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise NotAvailable(_explain(name, folder, known, error)) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(**settings, **revision)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError):
        tokenizer = None
    return model, tokenizer


def _hub_has_an_address() -> bool:
    """Whether a download is worth trying: without a name server each one would be retried for half a minute."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _explain(name: str, folder: Path | None, known: Mapping[str, Path], error: Exception) -> str:
    said = " ".join(str(error).split()) or "no reason given"
    reason = f"{type(error).__name__}: {said if len(said) <= 400 else said[:400] + '…'}"
    if folder is not None:
        return f"model {name!r} could not be loaded from {folder}: {reason}"
    names = ", ".join(known) or "none"
    close = difflib.get_close_matches(name, known, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return (
        f"model {name!r} is not a specimen ({names}), not a folder, and could not be had from the hub ({reason}){meant}"
    )
