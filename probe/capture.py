"""Read a sample with a model, reducing what its attention does into a trace while it does it."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from probe import discovery
from probe.errors import UsageError
from probe.hooks.huggingface import HuggingFaceModel, load
from probe.hooks.non_finite import first_non_finite
from probe.kernels.call import Call
from probe.kernels.keys import Keys
from probe.kernels.result import Result
from probe.kernels.scan import Scan
from probe.kernels.statistic import Statistic, parse
from probe.kernels.token_scan import TokenScan
from probe.outcome import Outcome
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import MemoryStore, unit_id
from probe.storage.trace_store import Trace
from probe.storage.unit_writer import UnitWriter

CHUNK_TOKENS: Final = 2048
"""Tokens of a prompt that go through the model at once: what bounds the memory of its activations and logits."""
POOL_FROM_TOKENS: Final = 16_384
"""Prompt length from which per-query and per-key arrays are pooled unless asked otherwise."""
POOL_TOKENS: Final = 64
"""Positions in a pooled block."""

Request = str | dict[str, Any] | Statistic | Callable[..., Any]


def trace(
    model: HuggingFaceModel | Any,
    x: str | Sequence[int] | Tensor | Sample,
    *,
    statistics: Request | Sequence[Request] | None = None,
    max_new_tokens: int | None = None,
    pool_tokens: int | str | None = "auto",
    chunk_tokens: int = CHUNK_TOKENS,
) -> Trace:
    """Read text, tokens or a sample with `model`, and return the trace of what its attention did.

    `statistics` are names, `{name: {parameter: value}}`, statistics, or analyses (which stand for what they need);
    by default what every shipped analysis needs. `max_new_tokens` answers are decoded greedily (by default as many
    tokens as the sample's answer has, else one); rows are the queries that produced them. `pool_tokens` pools per-query
    and per-key arrays over blocks of as many positions; "auto" does so with blocks of 64 from 16,384 tokens on, None
    never. Raises UsageError for an unknown statistic, NotReproducible for a model that cannot be captured exactly.
    """
    loaded = model if isinstance(model, HuggingFaceModel) else load(model)
    sample = as_sample(loaded, x)
    asked: Sequence[Request] = default_statistics()
    if statistics is not None:
        alone = isinstance(statistics, str | dict | Statistic) or callable(statistics)
        asked = [statistics] if alone else statistics  # type: ignore[list-item,assignment]
    requests = [parse(request) for request in expand(asked)]
    store = MemoryStore()
    unit = unit_id(sample.name, {"sample": sample.to_json()})
    writer = store.begin_unit(
        unit,
        stage="notebook",
        condition="as given",
        facts={"role": "baseline"},
        sample=sample,
        provenance=loaded.provenance(),
    )
    with writer:
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "pool_tokens": pool_tokens,
            "chunk_tokens": chunk_tokens,
        }
        writer.commit(read(loaded, sample, requests, writer, **options))
    return store.trace(unit)


def default_statistics() -> list[Request]:
    """Return what every shipped analysis needs, and the core statistics of a first look."""
    core: list[Request] = ["log_sum_exp", "entropy", "max_probability", "received_mass", "mean_distance", "loss"]
    return [*core, *(discovery.get("analyses", name) for name in discovery.names("analyses"))]


def expand(requests: Sequence[Request]) -> Iterator[Any]:
    """Put in the place of each analysis the statistics that it needs; leave out what stands twice."""
    seen: set[str] = set()
    for request in requests:
        needs = getattr(request, "needs", None)
        parts = [{n: dict(p)} if p else n for n, p in needs().items()] if callable(needs) else [request]
        for part in parts:
            key = parse(part).key
            if key not in seen:
                seen.add(key)
                yield part


def as_sample(model: HuggingFaceModel, x: str | Sequence[int] | Tensor | Sample) -> Sample:
    """Make a sample of text, tokens or a sample; raises UsageError for nothing, or ids that the model does not have."""
    if isinstance(x, Sample):
        sample = x
    elif isinstance(x, str):
        if model.tokenizer is None:
            raise UsageError(f"{model.name} has no tokenizer: give tokens, or load it with tokenizer=…")
        sample = Sample("text", tuple(model.tokenizer(x)["input_ids"]), text=x)
    else:
        sample = Sample("tokens", _token_ids(x))
    if not sample.tokens:
        raise UsageError(f"{sample.name!r} has no tokens")
    wrong = next((t for t in (*sample.tokens, *sample.answer_tokens) if not 0 <= t < model.vocab_size), None)
    if wrong is not None:
        raise UsageError(
            f"token id {wrong} of {sample.name!r} is outside {model.name}'s vocabulary of {model.vocab_size}"
        )
    if not sample.text and model.tokenizer is not None:
        sample = dataclasses.replace(sample, text=str(model.tokenizer.decode(sample.tokens)))
    return sample


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
) -> Outcome:
    """Read one sample: prefill, the right answer's log-probability, and the greedy answer; write what was asked for.

    The prompt without its last token is the prefill; decoding begins with the prompt's last token, as in Wu et al.
    (2024). The right answer is put through on the prompt's cache without being captured, and taken back.
    """
    requests = [parse(request) for request in statistics]
    if pool_tokens == "auto":
        pool_tokens = POOL_TOKENS if len(sample) >= POOL_FROM_TOKENS else None
    if pool_tokens is not None and (not isinstance(pool_tokens, int) or pool_tokens < 1):
        raise UsageError(f"pool_tokens is a whole number above 0, 'auto' or None, not {pool_tokens!r}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is at least 1, not {max_new_tokens}")
    reader = _Reader(model, sample, requests, pool_tokens)
    num_new = max_new_tokens if max_new_tokens is not None else max(1, len(sample.answer_tokens))
    outcome = reader.play(num_new, chunk_tokens)
    if not outcome.failed:
        reader.write(writer)
    return outcome


class _Reader:
    """One sample going through a model, and the scans that watch it."""

    def __init__(
        self, model: HuggingFaceModel, sample: Sample, requests: Sequence[Statistic], pool_tokens: int | None
    ) -> None:
        self.model = model
        self.sample = sample
        self.of_attention = [s for s in requests if s.kind in ("scan", "row", "key")]
        self.of_residual = [s for s in requests if s.kind == "residual"]
        self.of_token = [s for s in requests if s.kind == "token"]
        self.pool_tokens = pool_tokens
        self.scans: dict[int, Scan] = {}
        self.below: Keys | None = None
        self.residuals: dict[int, TokenScan] = {}
        self.tokens = TokenScan(self.of_token, token_start=1, pool_tokens=pool_tokens)
        self.nats = 0.0
        self.finite = True
        self.fed = torch.tensor(sample.tokens, dtype=torch.long, device=model.device)

    def play(self, num_new: int, chunk_tokens: int) -> Outcome:
        """Run the model over the sample and return what it answered."""
        prompt, answer = list(self.sample.tokens), list(self.sample.answer_tokens)
        with self._watched():
            state = self.model.prefill(prompt[:-1], chunk_tokens=chunk_tokens, on_logits=self._on_logits)
        answer_log_probability: tuple[float, ...] = ()
        if answer:
            mark = self.model.mark(state)
            logits = self.model.step(state, [prompt[-1], *answer[:-1]])
            self._check(logits)
            log_probability = torch.log_softmax(logits.float(), -1)
            answer_log_probability = tuple(log_probability[torch.arange(len(answer)), answer].tolist())
            self.model.rollback(state, mark)
        response: list[int] = []
        feed = prompt[-1]
        with self._watched():
            for _ in range(num_new):
                logits = self.model.step(state, [feed])
                self._check(logits)
                feed = int(logits[-1].argmax())
                response.append(feed)
                self.fed = torch.cat([self.fed, self.fed.new_tensor([feed])])
                if self.of_token and len(response) < num_new:
                    self.tokens.update(logits[-1:], self.fed[-1:])
        tokenizer = self.model.tokenizer
        return Outcome(
            response="" if tokenizer is None else str(tokenizer.decode(response)),
            response_tokens=tuple(response),
            correct=response[: len(answer)] == answer if answer and num_new >= len(answer) else None,
            success_rule="exact: the response begins with the answer's tokens" if answer else "",
            answer_log_probability=answer_log_probability,
            text_loss=self.nats / (len(prompt) - 1) if len(prompt) > 1 else None,
            failed=None if self.finite else self._where_not_finite([*prompt, *answer[:-1]], [*prompt, *response[:-1]]),
        )

    def _where_not_finite(self, *sequences: list[int]) -> str:
        """Read once more what was read, to say where the first bad number arises."""
        found = filter(None, (first_non_finite(self.model, tokens) for tokens in sequences))
        return f"NaN or infinity {next(found, 'in the logits, and not when the same was read again')}"

    def write(self, writer: UnitWriter) -> None:
        """Write every array, layer by layer."""
        for layer in sorted({*self.scans, *self.residuals}):
            results: dict[str, Result] = {}
            for scans in (self.scans, self.residuals):
                if layer in scans:
                    results |= scans.pop(layer).finish()
            writer.write_layer(layer, {name: _array(result) for name, result in results.items()})
        writer.write({name: _from_token_0(result) for name, result in self.tokens.finish().items()})

    def _watched(self) -> Any:
        on_call = self._on_call if self.of_attention else None
        on_residual = self._on_residual if self.of_residual else None
        if on_call is None and on_residual is None:
            return torch.no_grad()
        return self.model.calls(on_call, on_residual)

    def _on_call(self, _: int, call: Call) -> None:
        if call.layer not in self.scans:
            self.scans[call.layer] = Scan(self.of_attention, spans=self.sample.spans, pool_tokens=self.pool_tokens)
        stop = call.key_start + call.num_keys
        self.scans[call.layer].update(dataclasses.replace(call, tokens=self.fed[call.key_start : stop]), self.below)
        self.below = self.scans[call.layer].hand_over()

    def _on_residual(self, layer: int, _: int, hidden: Tensor) -> None:
        if layer not in self.residuals:
            self.residuals[layer] = TokenScan(self.of_residual, pool_tokens=self.pool_tokens)
        self.residuals[layer].update(hidden)

    def _on_logits(self, start: int, logits: Tensor) -> None:
        self._check(logits)
        targets = self.fed[start + 1 : start + 1 + len(logits)]
        # A slice of tokens at a time: a whole chunk's log-probabilities in float32 can outweigh the model.
        for rows, target in zip(logits.split(256), targets.split(256), strict=True):
            self.nats += float(torch.nn.functional.cross_entropy(rows.float(), target, reduction="sum"))
        if self.of_token:
            self.tokens.update(logits, targets)

    def _check(self, logits: Tensor) -> None:
        self.finite = self.finite and bool(torch.isfinite(logits).all())


def _from_token_0(result: Result) -> Array:
    """Put NaN at token 0, which nothing predicts, so that every array has the same token axis."""
    array = _array(result)
    if array.dims != ("token",):
        return array
    values = np.concatenate([np.full(1, np.nan, array.values.dtype), array.values])
    return dataclasses.replace(array, values=values, coordinates={"token": np.arange(len(values))})


def _array(result: Result) -> Array:
    return Array(
        result.dims,
        result.values.numpy(),
        unit=result.unit,
        definition=result.definition,
        source=result.source,
        coordinates=result.coordinates,
        merge=result.merge,
    )


__all__ = ["as_sample", "default_statistics", "expand", "load", "read", "trace"]
