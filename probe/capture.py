"""Read a sample with a model, reducing what its attention does into a trace while it does it."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor

from probe import discovery
from probe.analysis import needed_one_by_one
from probe.chat import chat_sample, is_chat
from probe.errors import UsageError
from probe.fits import check_fits, check_room
from probe.hooks.loading.backend import load
from probe.hooks.models.eager_check import UNCHECKED, compared_with_eager
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.sample_read import prepared
from probe.hooks.sequence.sample_read import reading as sample_reading
from probe.kernels.engine import EngineName
from probe.kernels.statistic import Statistic
from probe.outcome import Outcome
from probe.private import withheld_outcome, withheld_sample
from probe.reader import Reading
from probe.reader_class import reader_class
from probe.requested import Requested, all_requested, check_private, requested
from probe.sample import Sample
from probe.storage.saved_trace import saved_trace, write_trace_json
from probe.storage.store import MemoryStore, RunStore, unit_id
from probe.storage.trace_store import Trace
from probe.storage.trace_store import open as open_trace
from probe.storage.unit_writer import UnitWriter
from probe.thinking import with_thinking, with_thinking_answer
from probe.token_text import token_text

CHUNK_TOKENS: Final = 2048
"""Tokens of a prompt that go through the model at once: what bounds the memory of its activations and logits."""
POOL_FROM_TOKENS: Final = 16_384
"""Prompt length from which per-query and per-key arrays are pooled unless asked otherwise."""
POOL_TOKENS: Final = 64
"""Positions in a pooled block."""
FIRST_LOOK: Final = ("attention_sinks", "effective_length", "position_bias", "retrieval_heads")
"""Analyses whose statistics are captured where nobody says which."""

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Tensor | Sample
"""What a model reads: text, token ids, messages of a chat, or a sample."""
Request = str | dict[str, Any] | Statistic | Callable[..., Any]


def trace(
    model: HuggingFaceModel | Any,
    x: Prompt,
    *,
    statistics: Request | Sequence[Request] | None = None,
    queries_and_keys: Sequence[int] | None = None,
    max_new_tokens: int | None = None,
    pool_tokens: int | str | None = "auto",
    chunk_tokens: int = CHUNK_TOKENS,
    out: str | Path | None = None,
    overwrite: bool = False,
    private: bool = False,
    scan: EngineName = "auto",
    deterministic: bool = False,
    cache: Literal["device", "offload"] = "device",
    check: bool = True,
) -> Trace:
    """Read text, tokens, messages or a sample with `model`, and return the trace of what its attention did.

    Messages (`[{"role": "user", "content": "…"}]`) go through the tokenizer's chat template (see
    `probe.chat.chat_sample`); text gets the special tokens that the tokenizer adds, and both are on record. What a
    reasoning model thinks is a span, `thinking`, of the sample and of the outcome.

    `statistics` are names, `{name: {parameter: value}}`, statistics, or analyses (which stand for what they need);
    by default the core statistics, what the analyses of a first look need (`FIRST_LOOK`), and the states of recurrent
    layers; another analysis' are asked for with it: `statistics=[probe.head_roles]`. A parameter `layers` limits one to
    some layers, whose `trace.layer` then holds it. `queries_and_keys` are layers whose queries and keys are kept, so
    that `trace.window` gives any window of their heads exactly; each takes the room of its KV cache and its queries.
    `max_new_tokens` answers are decoded greedily (by default as many tokens as the sample says or its answer has); rows
    are the queries that produced them. `pool_tokens` pools per-query and per-key arrays over blocks of as many
    positions; "auto" does so with blocks of 64 from 16,384 tokens on, None never. With `out` the trace is written there
    as it is read, and need not fit into memory. With `private` the trace holds neither token ids nor text, and analyses
    that need them refuse.
    `scan` chooses what computes statistics of attention (Triton on CUDA and blocked torch elsewhere, by default; the
    float64 definitions with "reference"), `deterministic` has GPU sums equal bit for bit, `cache="offload"` keeps the
    KV cache in the host's memory. Before its first trace a model is held against its own eager attention on 16 tokens,
    once for each revision (see `compared_with_eager`); `check=False` leaves that out, and the trace says so.

    Raises UsageError for an unknown statistic, or where something stands at `out` (a saved trace goes with
    `overwrite`), NotReproducible for a model that cannot be captured exactly.
    """
    loaded = model if isinstance(model, HuggingFaceModel) else load(model)
    sample = as_sample(loaded, x)
    asked: Sequence[Request] = default_statistics(loaded)
    if statistics is not None:
        alone = isinstance(statistics, str | dict | Statistic) or callable(statistics)
        asked = [statistics] if alone else statistics  # type: ignore[list-item,assignment]
    requests = list(expand(asked))
    if queries_and_keys is not None:
        requests.append({"queries_and_keys": list(queries_and_keys)})
    requests = all_requested(requests)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "pool_tokens": pool_tokens,
        "chunk_tokens": chunk_tokens,
        "private": private,
        "reading": Reading(scan, deterministic, cache),
    }
    compared = comparison(loaded, requests, check=check)
    if out is None:
        return _traced(loaded, sample, requests, MemoryStore(), options, compared)
    with saved_trace(out, overwrite=overwrite) as folder, RunStore(folder) as store:
        unit = _traced(loaded, sample, requests, store, options, compared).unit
        write_trace_json(folder, unit)
    opened = open_trace(out)
    assert isinstance(opened, Trace)
    return opened


def _traced(
    model: HuggingFaceModel,
    sample: Sample,
    requests: Sequence[Requested],
    store: MemoryStore | RunStore,
    options: Mapping[str, Any],
    compared: Mapping[str, str],
) -> Trace:
    sample = prepared(model.hf, sample)
    kept = withheld_sample(sample) if options["private"] else sample
    writer = store.begin_unit(
        unit_id(kept.name, {"sample": kept.to_json()}),
        stage="notebook",
        condition="as given",
        facts={"role": "baseline"},
        sample=kept,
        provenance=model.provenance() | {"positions": model.positions(len(sample)), **compared},
    )
    with writer:
        writer.commit(read(model, sample, requests, writer, **options))
    return store.trace(writer.unit)


def comparison(model: HuggingFaceModel, requests: Sequence[Requested], *, check: bool) -> dict[str, str]:
    """Return what the provenance says of the comparison with eager attention; nothing where no attention is asked for.

    Raises NotReproducible where they disagree.
    """
    if not any(request.statistic.kind in ("scan", "row", "key") for request in requests):
        return {}
    return {"compared_with_eager": compared_with_eager(model) if check else UNCHECKED}


def default_statistics(model: HuggingFaceModel | None = None) -> list[Request]:
    """Return the core statistics, and what the analyses of a first look need; others are asked for by name.

    For a model with recurrent layers the statistics of their states come on top; where no layer attends, in the place
    of those of attention.
    """
    core: list[Request] = ["log_sum_exp", "entropy", "max_probability", "received_mass", "mean_distance", "loss"]
    attention = [*core, *(discovery.get("analyses", name) for name in FIRST_LOOK)]
    if not getattr(model, "recurrent_layers", None):
        return attention
    assert model is not None
    state: list[Request] = ["state_mean", "state_variance", "state_max", "state_norm", "decay", "input_gate"]
    return [*(attention if model.attention_layers else ["loss"]), *state]


def expand(requests: Sequence[Request]) -> Iterator[Any]:
    """Put in the place of each analysis the statistics that it needs; leave out what stands twice."""
    seen: set[tuple[str, tuple[int, ...] | None]] = set()
    for request in requests:
        needs = getattr(request, "needs", None)
        parts = [{n: p} if p else n for n, p in needed_one_by_one(needs())] if callable(needs) else [request]
        for part in parts:
            each = requested(part)
            key = each.statistic.key, each.layers
            if key not in seen:
                seen.add(key)
                yield part


def as_sample(model: HuggingFaceModel, x: Prompt) -> Sample:
    """Make a sample of what is read; raises UsageError for nothing, or ids that the model does not have."""
    if isinstance(x, Sample):
        sample = x
    elif isinstance(x, str):
        if model.tokenizer is None:
            raise UsageError(f"{model.name} has no tokenizer: give tokens, or load it with tokenizer=…")
        sample = Sample("text", tuple(model.tokenizer(x)["input_ids"]), text=x)
    elif is_chat(x):
        sample = chat_sample(model.tokenizer, x)
    else:
        sample = Sample("tokens", _token_ids(x))
    check_fits(model, sample)
    if not sample.text and model.tokenizer is not None:
        sample = dataclasses.replace(sample, text=str(model.tokenizer.decode(sample.tokens)))
    return with_thinking(sample, model.tokenizer)


def _token_ids(x: Any) -> tuple[int, ...]:
    if isinstance(x, Tensor):
        if x.ndim != 1 or x.is_floating_point():
            raise UsageError(f"tokens must be one row of integers, not {x.dtype} of shape {tuple(x.shape)}")
        return tuple(x.tolist())
    try:
        return tuple(operator.index(token) for token in x)
    except TypeError:
        raise UsageError(f"text, token ids or a sample is needed, not {x!r:.100}") from None


def read(
    model: HuggingFaceModel,
    sample: Sample,
    statistics: Sequence[Any],
    writer: UnitWriter,
    *,
    max_new_tokens: int | None = None,
    pool_tokens: int | str | None = "auto",
    chunk_tokens: int = CHUNK_TOKENS,
    private: bool = False,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
) -> Outcome:
    """Read one sample: prefill, the right answer's log-probability, and the greedy answer; write what was asked for.

    The prompt without its last token is the prefill; decoding begins with the prompt's last token, as in Wu et al.
    (2024). The right answer is put through on the prompt's cache without being captured, and taken back. With `private`
    neither the trace nor the outcome that is returned has token ids or words; `writer` was begun with
    `withheld_sample`. Raises UsageError where that and queries and keys are asked for, which give the tokens away.
    """
    requests = all_requested(statistics)
    if pool_tokens == "auto":
        pool_tokens = POOL_TOKENS if len(sample) >= POOL_FROM_TOKENS else None
    if pool_tokens is not None and (not isinstance(pool_tokens, int) or pool_tokens < 1):
        raise UsageError(f"pool_tokens is a whole number above 0, 'auto' or None, not {pool_tokens!r}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is at least 1, not {max_new_tokens}")
    if private:
        check_private(requests)
        writer.note(private=True)
    spans = withheld_sample(sample).spans if private else sample.spans
    reader = reader_class(model)(model, sample, requests, pool_tokens, writer, spans, reading)
    num_new = max_new_tokens if max_new_tokens is not None else sample.num_new_tokens
    check_room(model, sample, num_new)
    with sample_reading(sample):
        outcome = with_thinking_answer(reader.play(num_new, chunk_tokens), sample, model.tokenizer)
        reader.finish()
    if not private:
        ids = (*sample.tokens, *sample.answer_tokens, *outcome.response_tokens)
        writer.write_token_text(token_text(model.tokenizer, ids))
    return withheld_outcome(outcome) if private else outcome


__all__ = ["as_sample", "default_statistics", "expand", "load", "read", "trace"]
