"""What a run is asked to do: the casebook with what is set over it, and a model that can run it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probe import capture
from probe.casebook import Casebook, Override, load
from probe.cost import size
from probe.errors import NotAvailable, UsageError
from probe.fits import check_fits
from probe.reader import Reader
from probe.reader_class import reader_class
from probe.sample import Sample

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel


def default_folder(book: Casebook, model: HuggingFaceModel) -> Path:
    """Return the folder of a run whose caller names none: `runs/<casebook>-<model>`."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", Path(model.name).name if Path(model.name).is_dir() else model.name)
    return Path("runs") / f"{book.name}-{name.strip('-.') or 'model'}"


def prepare(
    casebook: str | Path | Casebook,
    *,
    model: Any = None,
    lengths: tuple[int, ...] | None = None,
    depths: tuple[float, ...] | None = None,
    limit: int | None = None,
    seed: int | None = None,
    backend: str | None = None,
    remote: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    haystack: str | Path | None = None,
    trust_remote_code: bool = False,
    device_map: str | int | Mapping[str, Any] | None = None,
) -> tuple[Casebook, HuggingFaceModel]:
    """Read the casebook with what is set over it, load its model, and check that the one can run the other."""
    given = casebook if isinstance(casebook, Casebook) else load(casebook)
    named_model = model if isinstance(model, str) else str(model) if isinstance(model, Path) else None
    if model is not None and named_model is None:
        named_model = str(getattr(model, "name", type(model).__name__))
    book = Override(
        model=named_model,
        seed=seed,
        lengths=lengths,
        depths=depths,
        samples=limit,
        haystack=None if haystack is None else str(haystack),
    ).apply(given)
    loaded = capture.load(
        book.model if model is None or isinstance(model, str | Path) else model,
        backend=backend,
        remote=remote,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
    )
    check_lengths(book, loaded)
    return book, loaded


def check_lengths(book: Casebook, model: HuggingFaceModel) -> None:
    """Raise, before any text is made, where the model cannot run a length, of whatever condition, or has no tokenizer.

    Raises UsageError too where the cache alone of one prompt is more than all the memory that there is.
    """
    if model.tokenizer is None:
        why = f": {model.tokenizer_error}" if model.tokenizer_error else ""
        raise NotAvailable(f"{model.name} has no tokenizer, and a workload is text{why}")
    replaced = ({}, *(c.workload for stage in book.stages for c in stage.conditions.values()))
    longest = max((n for each in replaced for n in getattr(book.build_workload(each), "lengths", ())), default=0)
    if model.hard_limit and model.max_length is not None and longest > model.max_length:
        raise too_long(model, longest)
    needs, has = cache_bytes(model, longest), total_memory(model.device)
    if has is not None and needs > has:
        raise UsageError(
            f"the keys and values of {longest:,} tokens take {size(needs)} in {model.name}, and there are "
            f"{size(has)} of memory in all; ask for shorter lengths (--lengths)"
        )


def cache_bytes(model: HuggingFaceModel, length: int) -> int:
    """Return what keys and values of a prompt take at least; 0 where layers keep less than all, or are elsewhere."""
    config = model.hf.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windowed = kinds is None and getattr(config, "sliding_window", None)
    if model.is_remote or windowed or getattr(config, "kv_lora_rank", None) or reader_class(model) is not Reader:
        return 0
    layers = zip(model.num_kv_heads, model.head_dim, kinds or ["full_attention"] * model.num_layers, strict=True)
    width = sum(kv * dim for kv, dim, kind in layers if kind == "full_attention")
    return 2 * width * model.dtype.itemsize * length


def total_memory(device: torch.device) -> int | None:
    """Return the memory of this machine, its GPUs' with it, in bytes; None where the system does not say."""
    try:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    if device.type not in ("cpu", "cuda"):
        return None
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    return host + sum(torch.cuda.get_device_properties(i).total_memory for i in gpus)


def check_samples(samples: Sequence[Sample], model: HuggingFaceModel) -> str | None:
    """Return a sentence where prompts are longer than the model was made for; raises UsageError where it cannot run
    them, with their answers or with what is decoded of each."""
    for sample in samples:
        check_fits(model, sample)
    # The last token of an answer is produced and never put through.
    longest = max((len(s) + max(s.num_new_tokens, len(s.answer_tokens)) - 1 for s in samples), default=0)
    limit = model.max_length
    if limit is None or longest <= limit:
        return None
    if model.hard_limit:
        raise too_long(model, longest)
    return f"{model.name} is configured for {limit} tokens; up to {longest} are read, more than it was made for"


def too_long(model: HuggingFaceModel, length: int) -> UsageError:
    """Return the error of a prompt that the model cannot run."""
    return UsageError(
        f"{model.name} has {model.max_length} learned positions and cannot run {length} tokens; "
        "ask for shorter lengths (--lengths)"
    )
