"""Reads what is typed, untouched and with something done to the model, into units of one run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch

from probe import capture, discovery, strict_yaml
from probe.benchmark.memory import ProcessMemory
from probe.capture import as_sample, default_statistics, expand
from probe.casebook import build
from probe.errors import CasebookError, NotAvailable, NotReproducible, UsageError
from probe.fits import check_fits, check_room
from probe.hooks.intervention import Intervention
from probe.hooks.sequence.sample_read import prepared
from probe.outcome import Outcome
from probe.plan import Played
from probe.reading_cost import measured
from probe.requested import all_requested, check_layers
from probe.sample import Sample
from probe.storage.seal import write_record
from probe.storage.store import RunStore, unit_id
from probe.storage.trace_store import Trace
from probe.what_if import MOST_TOKENS, WhatIf
from probe.workloads.asking import answer_tokens

STAGE: Final = "what-if"
"""The stage that every unit is of."""
UNTOUCHED: Final = "untouched"
"""The condition in which nothing is done."""
MOST_UNITS: Final = 200
"""Units that are kept, at most."""
MOST_BYTES: Final = 16 << 30
"""Bytes on the disk beyond which nothing more is read."""

_FOREIGN: Final = ("kvpress",)
_MOST_NAME: Final = 120

Tell = Callable[..., None]


class LiveReader:
    """A loaded model, and the run folder of what it was asked."""

    def __init__(self, model: str, options: Mapping[str, Any], folder: Path) -> None:
        """Load the model; raises as `probe.load` does, NotAvailable where it has no tokenizer."""
        self.model = capture.load(model, **options)
        if self.model.is_remote:
            raise NotReproducible(f"{self.model.name} runs elsewhere: what is typed is read on this machine alone")
        if self.model.tokenizer is None:
            why = f": {self.model.tokenizer_error}" if self.model.tokenizer_error else ""
            raise NotAvailable(f"{self.model.name} has no tokenizer, and a prompt is text{why}")
        self.folder = folder
        self.store = RunStore(folder)
        self._compared: dict[str, str] | None = None
        self._recorded = False

    def facts(self) -> dict[str, Any]:
        """Return what the page says of the model."""
        return {"model": self.model.name, "device": str(self.model.device), "memory": self.memory_bytes()}

    def memory_bytes(self) -> int:
        """Return the most memory that the process held so far, and what it has allocated on the GPU."""
        device = self.model.device
        return ProcessMemory().peak() + (torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)

    def read(self, asked: WhatIf, name: str, tell: Tell) -> dict[str, Any]:
        """Read a prompt, and again with what is done to the model; return the readings and how they differ.

        `tell(condition=…, done=…, total=…)` is called as tokens are read. What was read before in this very way is not
        read again. Raises UsageError, naming the field, before anything is read.
        """
        sample = self._sample(asked, name)
        requests = self._requests(asked)
        check_layers(all_requested(requests), self.model)
        intervention = self._intervention(asked)
        if intervention is not None:
            # Whether it can be entered is known before the long work begins.
            intervention.check(self.model, sample)
            with intervention(self.model):
                pass
        self._check_room()
        if not self._recorded:
            self._record(requests)
            self._recorded = True
        units = [self._read(UNTOUCHED, None, sample, requests, tell)]
        if intervention is not None:
            units.append(self._read(condition_name(intervention), intervention, sample, requests, tell))
        readings = [_reading(trace) for trace in units]
        return {"readings": readings, "difference": _difference(*units) if len(units) == 2 else None}

    def _check_room(self) -> None:
        if len(self.store.committed()) >= MOST_UNITS:
            raise UsageError(f"{MOST_UNITS} units are kept here, and no more; start the explorer anew")
        kept = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if kept >= MOST_BYTES:
            raise UsageError(
                f"what was read takes {kept / 2**30:.1f} GiB on the disk, and {MOST_BYTES / 2**30:.1f} GiB the most; "
                "start the explorer anew, or keep the queries and keys of fewer layers"
            )

    def _sample(self, asked: WhatIf, name: str) -> Sample:
        made = as_sample(self.model, asked.prompt)
        if len(made) > MOST_TOKENS:
            raise UsageError(f"prompt: {len(made):,} tokens; at most {MOST_TOKENS:,} are read here")
        if len(made) < 2:
            raise UsageError("prompt: one token; at least two are needed")
        answer = asked.answer
        if answer and not asked.prompt[-1].isspace() and not answer[0].isspace():
            answer = f" {answer}"
        tokens = answer_tokens(self.model.tokenizer, asked.prompt, made.tokens, answer) if answer.strip() else ()
        made = dataclasses.replace(
            made,
            name=name,
            answer=answer if tokens else "",
            answer_tokens=tokens,
            max_new_tokens=asked.num_new_tokens,
            facts={"length": len(made.tokens)},
        )
        check_fits(self.model, made)
        check_room(self.model, made, made.num_new_tokens)
        return made

    def _requests(self, asked: WhatIf) -> list[Any]:
        attends = bool(self.model.attention_layers)
        maps = ["attention_map", "top_keys"] if attends else []
        requests = list(expand([*default_statistics(self.model), *maps]))
        if asked.layers:
            requests.append({"queries_and_keys": list(asked.layers)})
        return requests

    def _intervention(self, asked: WhatIf) -> Intervention | None:
        if asked.heads:
            return _built("ablate_heads", {"heads": [list(pair) for pair in asked.heads]})
        if not asked.intervention:
            return None
        fields: Any = {}
        if asked.fields.strip():
            fields = strict_yaml.parse(asked.fields, "fields").value
        return _built(asked.intervention, fields)

    def _read(
        self, condition: str, intervention: Intervention | None, sample: Sample, requests: list[Any], tell: Tell
    ) -> Trace:
        role = "baseline" if intervention is None else "treatment"
        done = None if intervention is None else intervention.to_json()
        facts = Played(condition, role, capture=True, workload={}, intervention=done).facts()
        asked = [repr(each) for each in all_requested(requests)]
        identity = {"condition": [condition, done], "sample": sample.to_json(), "requests": asked}
        unit = unit_id(f"{condition}-{sample.name}", identity)
        if unit in self.store.committed():
            return self.store.trace(unit)
        with intervention(self.model) if intervention is not None else nullcontext():
            ready = prepared(self.model.hf, sample)
            if len(ready) > MOST_TOKENS:
                raise UsageError(f"{condition}: {len(ready):,} tokens; at most {MOST_TOKENS:,} are read here")
            writer = self.store.begin_unit(
                unit,
                stage=STAGE,
                condition=condition,
                facts=facts,
                sample=ready,
                provenance=self._provenance(requests) | {"positions": self.model.positions(len(ready))},
            )
            with writer:
                with measured(self.model.device) as cost, self._counted(condition, ready, tell):
                    outcome = capture.read(self.model, ready, requests, writer)
                writer.note(cost=cost)
                writer.commit(outcome)
        return self.store.trace(unit)

    def _provenance(self, requests: list[Any]) -> dict[str, Any]:
        if self._compared is None:
            self._compared = capture.comparison(self.model, all_requested(requests), check=True)
        return self.model.provenance() | self._compared

    def _record(self, requests: list[Any]) -> None:
        provenance = self._provenance(requests)
        known = ("model", "revision", "weights_sha256", "tokenizer_sha256", "dtype", "device")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(
            self.folder,
            {
                "format": 1,
                "status": "complete",
                "identity": {"what": STAGE} | {key: str(provenance.get(key)) for key in known},
                "provenance": provenance,
                "model_card": self.model.card(),
                "stages": {},
                "failed": [],
            },
        )

    @contextmanager
    def _counted(self, condition: str, sample: Sample, tell: Tell) -> Iterator[None]:
        """Tell how many tokens have gone into the model within the block."""
        total = len(sample) - 1 + len(sample.answer_tokens) + sample.num_new_tokens
        done = 0

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            nonlocal done
            if inputs and isinstance(inputs[0], torch.Tensor):
                done += inputs[0].shape[-1]
                tell(condition=condition, done=min(done, total), total=total)

        tell(condition=condition, done=0, total=total)
        handle = self.model.hf.get_input_embeddings().register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()


def condition_name(intervention: Intervention) -> str:
    """Return what a condition is called after what is done: `with ablate_heads 2:9, 2:13`; fields as by default left
    out, and of a long one the beginning and a hash."""
    said = f"with {_said(intervention)}"
    if len(said) <= _MOST_NAME:
        return said
    return f"{said[: _MOST_NAME - 12]}… {hashlib.sha256(said.encode()).hexdigest()[:8]}"


def _said(intervention: Intervention) -> str:
    made: Any = intervention
    name, fields = next(iter(intervention.to_json().items()))
    if name == "together":
        return " + ".join(_said(each) for each in made.interventions)
    usual = {f.name: f.default for f in dataclasses.fields(made)}
    words = []
    for key, value in fields.items():
        if getattr(made, key) == usual[key]:
            continue
        if key == "heads":
            words.append(", ".join(f"{layer}:{head}" for layer, head in value))
        else:
            words.append(f"{key} {value if isinstance(value, str | int | float) else json.dumps(value, default=str)}")
    return " ".join([name, "; ".join(words)]).strip()


def _built(name: str, fields: Any) -> Intervention:
    """Build an intervention of this toolkit's own; raises UsageError naming the field that it cannot be built with."""
    there = discovery.modules("hooks")
    own = [each for each, module in there.items() if module == f"probe.hooks.{each}" and each not in _FOREIGN]
    if name not in own:
        raise UsageError(
            f"intervention: {str(name)[:100]!r} is none that can be typed here; there are {', '.join(own)}"
        )
    if not isinstance(fields, dict):
        raise UsageError(f"fields: expected the fields of {name} with their values, such as `tau: 0.8`")
    if name != "together":
        try:
            built: Intervention = build("hooks", name, fields)
        except CasebookError as error:
            # What a casebook would say, without the place in a file.
            raise UsageError(f"fields: {str(error).removeprefix(f'{name}:1:1: ')}") from None
        return built
    parts = fields.get("interventions")
    if set(fields) != {"interventions"} or not isinstance(parts, list):
        raise UsageError("fields: together has the one field interventions, a list of `name: {field: value}`")
    if any(not isinstance(part, dict) or len(part) != 1 for part in parts):
        raise UsageError("fields: interventions: each is one name with its fields")
    both: Intervention = discovery.get("hooks", name)([_built(*next(iter(part.items()))) for part in parts])
    return both


def _reading(trace: Trace) -> dict[str, Any]:
    outcome = _outcome(trace)
    return {
        "unit": trace.unit,
        "condition": trace.condition,
        "num_tokens": len(trace.sample),
        "response": outcome.response,
        "correct": outcome.correct,
        "answer_loss": _finite(outcome.answer_loss),
        "text_loss": _finite(outcome.text_loss),
        "failed": outcome.failed,
    }


def _difference(untouched: Trace, changed: Trace) -> dict[str, Any]:
    """Return what the change did: losses with it less losses without, None where they are not of the same text."""
    before, after = _outcome(untouched), _outcome(changed)
    same_text = untouched.sample.tokens == changed.sample.tokens

    def less(name: str) -> float | None:
        pair = [getattr(after, name), getattr(before, name)]
        return None if None in pair else _finite(pair[0] - pair[1])

    return {
        "same_response": before.response_tokens == after.response_tokens,
        "same_text": same_text,
        "answer_loss": less("answer_loss"),
        "text_loss": less("text_loss") if same_text else None,
    }


def _outcome(trace: Trace) -> Outcome:
    return trace.outcome or Outcome()


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
