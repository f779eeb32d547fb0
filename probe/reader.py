"""One sample going through a model, the scans that watch it, and the trace that is written as it goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from probe.errors import NotReproducible, UsageError
from probe.hooks.loading.rotary_pairs import rotary_pairs
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.hooks.sequence.answer_logits import AnswerLogits
from probe.hooks.sequence.decoding import Cache
from probe.hooks.sequence.non_finite import first_non_finite
from probe.kept_vectors import KeptVectors
from probe.kernels.call import Call
from probe.kernels.engine import EngineName
from probe.kernels.keys import Keys
from probe.kernels.non_finite_heads import NonFiniteHeads
from probe.kernels.recurrence import Recurrence
from probe.kernels.recurrence_scan import RecurrenceScan
from probe.kernels.result import Result
from probe.kernels.scan import Scan
from probe.kernels.statistic import Statistic
from probe.kernels.token_scan import TokenScan
from probe.outcome import Outcome
from probe.requested import Requested, check_layers
from probe.sample import Sample, Span
from probe.storage.array import Array
from probe.storage.unit_writer import PartWriter, UnitWriter
from probe.success import judge
from probe.token_text import until_the_end

MAP_TILE: dict[str, int] = {"head": 1, "query_block": 512, "key_block": 512}
"""How much of a chosen layer's map is read at once: one head's, as somebody who zooms looks at it."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a prompt is read, beyond what is captured. No choice here changes a number by more than rounding."""

    scan: EngineName = "auto"
    """What computes statistics of attention: `auto` (Triton on CUDA, blocked torch elsewhere), `triton`, `blocked`, or
    `reference`: the float64 definitions, for prompts of at most 4,096 tokens."""
    deterministic: bool = False
    """Whether sums on a GPU come out equal bit for bit in every run, at some cost."""
    cache: Cache = "device"
    """Where keys and values lie: on the device, or in the host's memory, for prompts whose cache the device cannot
    hold."""

    def __post_init__(self) -> None:
        for name, choices in (("scan", get_args(EngineName)), ("cache", get_args(Cache))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")

    def identity(self) -> dict[str, str]:
        """Return what makes two runs differ, by rounding, where it is not the usual."""
        usual = Reading()
        return {
            # `engine` is what runs that were made earlier call it, which are to be continued.
            "engine" if field.name == "scan" else field.name: str(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != getattr(usual, field.name) and field.name != "cache"
        }


class Reader:
    """Reads one sample, and writes what was asked for.

    Arrays that grow with the prompt are handed to the writer after every chunk; sums, maxima and rows stay until the
    end, and go layer by layer.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        sample: Sample,
        requests: Sequence[Requested],
        pool_tokens: int | None,
        writer: UnitWriter | PartWriter,
        spans: Sequence[Span],
        reading: Reading = Reading(),
    ) -> None:
        """Prepare; raises UsageError for a layer that the model does not have, or that does not attend.

        `spans` are the sample's, as the trace is to call them.
        """
        self.model = model
        self.sample = sample
        self.spans = spans
        self.reading = reading
        self.of_attention = [r for r in requests if r.statistic.kind in ("scan", "row", "key")]
        self.of_residual = [r for r in requests if r.statistic.kind == "residual"]
        self.of_recurrence = [r for r in requests if r.statistic.kind == "recurrence"]
        of_token = [r.statistic for r in requests if r.statistic.kind == "token"]
        self._check_layers(requests)
        self.left_out: dict[str, str] = {}
        self.answer_logits: AnswerLogits | None = None
        self._find("needs_logit_direction", self._find_answer_logits)
        self.rotary_pairs: Mapping[int, Tensor] = {}
        self._find("needs_rotary_pairs", self._find_rotary_pairs)
        self.pool_tokens = pool_tokens
        self.writer = writer
        self.scans: dict[int, Scan] = {}
        self.vectors: dict[int, KeptVectors] = {}
        self.residuals: dict[int, TokenScan] = {}
        self.recurrences: dict[int, RecurrenceScan] = {}
        self.bad: dict[int, NonFiniteHeads] = {}
        self.below: Keys | None = None
        self.tokens = TokenScan(of_token, token_start=1, pool_tokens=pool_tokens)
        self.nats = 0.0
        self.num_predicted = 0
        self.finite = True
        self.in_parts = False
        self.fresh = False
        self.handed_over: set[tuple[int | None, str]] = set()
        self.how_it_went: str | None = None
        self.fed = torch.tensor(sample.tokens, dtype=torch.long, device=model.device)

    def _check_layers(self, requests: Sequence[Requested]) -> None:
        check_layers(requests, self.model)

    def _find_answer_logits(self) -> None:
        if not self.sample.answer_tokens:
            raise NotReproducible(f"sample {self.sample.name!r} has no right answer, whose logit it would be about")
        self.answer_logits = AnswerLogits(self.model, self.sample)

    def _find_rotary_pairs(self) -> None:
        self.rotary_pairs = rotary_pairs(self.model.hf)

    def _find(self, need: str, find: Callable[[], None]) -> None:
        """Prepare what statistics with this need ask of the model; where it has none, they are left out.

        Raises NotReproducible where nothing else was asked for.
        """
        wanted = [request for request in self.of_attention if getattr(request.statistic, need)]
        try:
            if wanted:
                find()
        except NotReproducible as reason:
            if wanted == [*self.of_attention, *self.of_residual, *self.of_recurrence]:
                raise
            self._leave_out(wanted, str(reason))

    def _leave_out(self, requests: Sequence[Requested], reason: str) -> None:
        """Capture without these, and say so in the trace."""
        self.of_attention = [request for request in self.of_attention if request not in requests]
        self.left_out |= {request.statistic.name(): reason for request in requests}

    def play(self, num_new: int, chunk_tokens: int) -> Outcome:
        """Run the model over the sample and return what it answered."""
        prompt, answer = list(self.sample.tokens), list(self.sample.answer_tokens)
        state, feed = self._prompt(chunk_tokens)
        self.how_it_went = getattr(state, "prompt", None) or None
        answer_log_probability: tuple[float, ...] = ()
        if answer:
            mark = self.model.mark(state)
            logits = self.model.step(state, [feed, *answer[:-1]])
            self._check(logits)
            log_probability = torch.log_softmax(logits.float(), -1)
            answer_log_probability = tuple(log_probability[torch.arange(len(answer)), answer].tolist())
            self.model.rollback(state, mark)
        response: list[int] = []
        with self._watched(), nullcontext() if self.answer_logits is None else self.answer_logits.recorded():
            for _ in range(num_new):
                logits = self.model.step(state, [feed])
                self._check(logits)
                if self.answer_logits is not None:
                    self.answer_logits.row_done(logits[-1])
                feed = int(logits[-1].argmax())
                response.append(feed)
                self.fed = torch.cat([self.fed, self.fed.new_tensor([feed])])
                if self.tokens.statistics and len(response) < num_new:
                    self.tokens.update(logits[-1:], self.fed[-1:].to(logits.device))
        tokenizer = self.model.tokenizer
        judged = judge(self.sample, response, None if tokenizer is None else until_the_end(tokenizer, response))
        return Outcome(
            response="" if tokenizer is None else str(tokenizer.decode(response)),
            response_tokens=tuple(response),
            correct=judged.correct,
            score=judged.score,
            success_rule=judged.rule,
            answer_log_probability=answer_log_probability,
            text_loss=self.nats / self.num_predicted if self.num_predicted else None,
            failed=None if self.finite else self._where_not_finite([*prompt, *answer[:-1]], [*prompt, *response[:-1]]),
        )

    def _prompt(self, chunk_tokens: int) -> tuple[Any, int]:
        """Put the prompt through; return where it stands, and the token whose logits are the answer's first."""
        prompt = self.sample.tokens
        self.in_parts = len(prompt) - 1 > chunk_tokens
        with self._watched():
            state = self.model.prefill(
                prompt[:-1], chunk_tokens=chunk_tokens, on_logits=self._on_logits, cache=self.reading.cache,
                whole=len(prompt),
            )  # fmt: skip
        return state, prompt[-1]

    @property
    def num_queries(self) -> int:
        """Queries that were seen."""
        return len(self.fed) - 1

    def finish(self) -> None:
        """Write what is left, layer by layer, and what was learnt on the way."""
        engines = {name for scan in self.scans.values() if (name := scan.engine_name) is not None}
        self.writer.note(
            num_queries=self.num_queries,
            engine=", ".join(sorted(engines)) or None,
            prompt=self.how_it_went,
            attention={str(layer): kept.facts for layer, kept in self.vectors.items()},
            non_finite=[dataclasses.asdict(head) for _, heads in sorted(self.bad.items()) for head in heads.found],
        )
        if self.left_out:
            self.writer.note(left_out=self.left_out)
        for layer in sorted({*self.scans, *self.residuals, *self.recurrences}):
            for scans in (self.scans, self.residuals, self.recurrences):
                if layer in scans:
                    self._write_layer(layer, self._scaled(layer, scans.pop(layer).finish()))
        self._write_tokens(self.tokens.finish())

    def _scaled(self, layer: int, results: Mapping[str, Result]) -> Mapping[str, Result]:
        """Multiply what adds to a logit by the norms' scales at each row, which the scan did not know yet."""
        if self.answer_logits is None:
            return results
        names = {
            request.statistic.array_name(suffix)
            for request in self.of_attention
            if request.statistic.needs_logit_direction
            for suffix in request.statistic.arrays
        }
        return {
            name: dataclasses.replace(result, values=times_rows(result, self.answer_logits.scale(layer)))
            if name in names
            else result
            for name, result in results.items()
        }

    def _hand_over(self) -> None:
        """Write what is finished of the arrays that grow with the prompt."""
        self.fresh = False
        for scans in (self.scans, self.residuals, self.recurrences):
            for layer, scan in scans.items():
                self._write_layer(layer, scan.drain(), part=True)
        self._write_tokens(self.tokens.drain(), part=True)

    def _write_layer(self, layer: int, results: Mapping[str, Result], *, part: bool = False) -> None:
        for name, result in results.items():
            array, axis = _array(result), result.grows_along
            known = (layer, name) in self.handed_over
            if part:
                self.handed_over.add((layer, name))
            if (owner := self._owner(name)) is None:
                if axis is not None and (part or known):
                    self.writer.append_layer(layer, {name: array}, axis)
                else:
                    self.writer.write_layer(layer, {name: array})
            elif axis is not None:
                name = "log_sum_exp" if owner.keeps_vectors else name
                self.writer.of_layer(layer).append({name: array}, axis)
            else:
                self.writer.of_layer(layer).write({name: array}, MAP_TILE)

    def _owner(self, name: str) -> Requested | None:
        """Return the request behind an array that lies in its layer's own group; None for one of all layers."""
        for each in (*self.of_attention, *self.of_residual, *self.of_recurrence):
            alone = each.layers is not None or each.keeps_vectors
            if alone and name in {each.statistic.array_name(suffix) for suffix in _suffixes(each)}:
                return each
        return None

    def _write_tokens(self, results: Mapping[str, Result], *, part: bool = False) -> None:
        for name, result in results.items():
            known = (None, name) in self.handed_over
            array, axis = _array(result) if known else _from_token_0(result), result.grows_along
            if part:
                self.handed_over.add((None, name))
            if axis is not None and (part or known):
                self.writer.append({name: array}, axis)
            else:
                self.writer.write({name: array})

    def _where_not_finite(self, *sequences: list[int]) -> str:
        """Read once more what was read, to say where the first bad number arises."""
        found = filter(None, (first_non_finite(self.model, tokens) for tokens in sequences))
        return f"NaN or infinity {next(found, 'in the logits, and not when the same was read again')}"

    def _watched(self) -> Any:
        on_call = self._on_call if self.of_attention else None
        on_residual = self._on_residual if self.of_residual else None
        if self.of_recurrence:
            return self.model.calls(on_call, on_residual, self._on_recurrence)
        if on_call is None and on_residual is None:
            return torch.no_grad()
        return self.model.calls(on_call, on_residual)

    def _on_call(self, _: int, call: Call) -> None:
        layer = call.layer
        self.bad.setdefault(layer, NonFiniteHeads()).update(call)
        wanted = [request for request in self.of_attention if request.of(layer)]
        if not wanted:
            self.below = None
            return
        if layer not in self.scans:
            self.scans[layer] = self._new_scan([request.statistic for request in wanted])
            if any(request.keeps_vectors for request in wanted):
                self.vectors[layer] = KeptVectors(self.writer.of_layer(layer))
        self.fresh = True
        stop = call.key_start + call.num_keys
        # A model's layers may lie on different devices.
        tokens = self.fed[call.key_start : stop].to(call.query.device)
        seen = dataclasses.replace(call, tokens=tokens, rotary_pairs=self.rotary_pairs.get(layer))
        if self.answer_logits is not None:
            seen = self.answer_logits.directed(seen)
        self.scans[layer].update(seen, self.below)
        self.below = self.scans[layer].hand_over()
        if layer in self.vectors:
            self.vectors[layer].take(call)

    def _new_scan(self, statistics: Sequence[Statistic]) -> Scan:
        engine, deterministic = self.reading.scan, self.reading.deterministic
        return Scan(
            statistics, spans=self.spans, pool_tokens=self.pool_tokens, engine=engine, deterministic=deterministic
        )

    def _on_residual(self, layer: int, _: int, hidden: Tensor) -> None:
        wanted = [request.statistic for request in self.of_residual if request.of(layer)]
        if not wanted:
            return
        if layer not in self.residuals:
            self.residuals[layer] = TokenScan(wanted, pool_tokens=self.pool_tokens)
        self.fresh = True
        self.residuals[layer].update(hidden)

    def _on_recurrence(self, _: int, recurrence: Recurrence) -> None:
        wanted = [request.statistic for request in self.of_recurrence if request.of(recurrence.layer)]
        if not wanted:
            return
        if recurrence.layer not in self.recurrences:
            self.recurrences[recurrence.layer] = RecurrenceScan(wanted, pool_tokens=self.pool_tokens)
        self.fresh = True
        self.recurrences[recurrence.layer].update(recurrence)

    def _on_logits(self, start: int, logits: Tensor) -> None:
        self._check(logits)
        targets = self.fed[start + 1 : start + 1 + len(logits)].to(logits.device)
        # A slice of tokens at a time: a whole chunk's log-probabilities in float32 can outweigh the model.
        for rows, target in zip(logits.split(256), targets.split(256), strict=True):
            self.nats += float(torch.nn.functional.cross_entropy(rows.float(), target, reduction="sum"))
        self.num_predicted += len(targets)
        if self.tokens.statistics:
            self.tokens.update(logits, targets)
        # Logits come in slices; what a forward of the layers brought is handed over once.
        if self.in_parts and self.fresh:
            self._hand_over()

    def _check(self, logits: Tensor) -> None:
        self.finite = self.finite and bool(torch.isfinite(logits).all())


def times_rows(result: Result, factor: Tensor) -> Tensor:
    """Return a result's values times one number a row."""
    row = result.dims.index("row")
    factor = factor.reshape([-1 if axis == row else 1 for axis in range(result.values.ndim)])
    return (result.values.double() * factor).to(result.values.dtype)


def _suffixes(request: Requested) -> list[str]:
    """Return the suffixes of the arrays that a statistic gives, pooled or not."""
    own = list(request.statistic.arrays)
    return [*own, *(f"{suffix}_max".lstrip("_") for suffix in own)]


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
        block_tokens=result.block_tokens,
    )
