"""Where a model's name leads: a specimen that ships with the toolkit, a folder, or the hub."""

from __future__ import annotations

import difflib
import importlib
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from probe.errors import NotAvailable, ProbeError
from probe.hooks.loading.adapter_folder import adapter_config, with_adapter
from probe.hooks.loading.checkpoint_class import checkpoint_class


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


@dataclass(frozen=True, eq=False)
class found_model:
    """A model as it was found."""

    hf: PreTrainedModel
    """The model, with every weight from its checkpoint."""
    tokenizer: Any
    """Its tokenizer, or None."""
    tokenizer_error: str | None
    """Why it has no tokenizer, in one line; None where it has one."""


def find_model(name: str, *, trust_remote_code: bool = False, **options: Any) -> found_model:
    """The model and its tokenizer, which it may lack; `options` go to `from_pretrained`.

    A specimen or a folder is read without any network. Raises `NotAvailable` naming what was tried, and the tensors
    that the checkpoint lacks or holds in another shape: transformers would fill them with random numbers.
    """
    known = specimens()
    folder = known.get(name) or (Path(name) if Path(name).is_dir() else None)
    where: Mapping[str, Any] = {"pretrained_model_name_or_path": name if folder is None else str(folder)}
    local = folder is not None or not _hub_has_an_address()
    settings = {**where, "trust_remote_code": trust_remote_code, "local_files_only": local}
    if folder is None and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise NotAvailable(f"model {name!r}: there is no such folder")
    adapter = adapter_config(where["pretrained_model_name_or_path"], local=local, revision=options.get("revision"))
    if adapter is not None:
        return _adapted(name, where["pretrained_model_name_or_path"], adapter, trust_remote_code, local, options)
    if folder is not None and not (folder / "config.json").is_file():
        raise NotAvailable(f"{name}: the folder {folder} holds no config.json, so no model")
    revision = {"revision": options["revision"]} if options.get("revision") else {}
    # A tensor of another shape is then told of by name and shapes, not by an error that points to a table.
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _quiet():
        try:
            opened_as = checkpoint_class({**settings, **revision})
            model, report = opened_as.from_pretrained(**settings, **reporting, **options)
        except Exception as error:
            raise NotAvailable(_explain(name, folder, known, error)) from error
        _refuse_random_weights(name, report)
        try:
            return found_model(model, AutoTokenizer.from_pretrained(**settings, **revision), None)
        except Exception as error:  # noqa: BLE001 (a tokenizer fails in as many ways; whoever needs it tells why)
            return found_model(model, None, _in_one_line(error))


def _adapted(
    name: str, where: str, adapter: Mapping[str, Any], trust_remote_code: bool, local: bool, options: dict[str, Any]
) -> found_model:
    """The adapter's base model with the adapter in it; its own tokenizer where it brings one, else the base's."""
    revision = options.pop("revision", None)
    base_revision = {"revision": adapter["revision"]} if adapter.get("revision") else {}
    base = str(adapter["base_model_name_or_path"])
    try:
        found = find_model(base, trust_remote_code=trust_remote_code, **base_revision, **options)
    except NotAvailable as error:
        raise NotAvailable(f"model {name!r} is a peft adapter of {base!r}: {error}") from error
    chosen = {"revision": revision} if revision else {}
    with _quiet():
        try:
            model = with_adapter(found.hf, where, local=local, revision=revision)
        except ProbeError:
            raise
        except Exception as error:
            raise NotAvailable(f"adapter {name!r} does not fit its base {base!r}: {_in_one_line(error)}") from error
        try:
            own = AutoTokenizer.from_pretrained(
                where, trust_remote_code=trust_remote_code, local_files_only=local, **chosen
            )
        except Exception:  # noqa: BLE001 (an adapter seldom brings a tokenizer, and lacks one in as many ways)
            own = None
    return found_model(model, own or found.tokenizer, None if own else found.tokenizer_error)


def _refuse_random_weights(name: str, report: Mapping[str, Any]) -> None:
    said = []
    if report["missing_keys"]:
        said.append(f"lacks {_few(report['missing_keys'])}")
    if report["mismatched_keys"]:
        shapes = [f"{key} as {tuple(held)}, not {tuple(due)}" for key, held, due in report["mismatched_keys"]]
        said.append(f"holds {_few(shapes)}")
    if said:
        raise NotAvailable(f"model {name!r}: its checkpoint {' and '.join(said)}; it would run on random weights")


def _few(names: Collection[str]) -> str:
    first = sorted(names)[:5]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


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
def _quiet() -> Iterator[None]:
    """Keep transformers' remarks and its bars off stderr; the hub's downloads, and who asked for more, still speak."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    if verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {said if len(said) <= 400 else said[:400] + '…'}"


def _explain(name: str, folder: Path | None, known: Mapping[str, Path], error: Exception) -> str:
    reason = _in_one_line(error)
    # transformers goes on with the names of all that it has.
    if config := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", str(error)):
        reason = f"{config[1]} is not the configuration of a causal language model"
    if "trust_remote_code" in str(error):
        return (
            f"model {name!r} brings code of its own, which can do anything and was not run; read it, and where you "
            "trust it allow it with --trust-remote-code (trust_remote_code=True)"
        )
    if folder is not None:
        return f"model {name!r} could not be loaded from {folder}: {reason}"
    names = ", ".join(known) or "none"
    close = difflib.get_close_matches(name, known, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return (
        f"model {name!r} is not a specimen ({names}), not a folder, and could not be had from the hub ({reason}){meant}"
    )
