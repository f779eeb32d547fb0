"""One architecture held against its own eager attention, in every way of taking in tokens."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from probe.conformance import two_texts
from probe.conformance.eager import EagerRun, Pattern, eager_copy, eager_run
from probe.conformance.expected import expected, expected_loss, expected_of_hidden
from probe.conformance.features import Features
from probe.conformance.recurrent import EVERY, of_states, states_by_step
from probe.conformance.tiny_config import VOCABULARY
from probe.conformance.ways import NUM_TOKENS, WAYS, Captured, spans, watched
from probe.errors import ProbeError
from probe.hooks.loading.backend import load
from probe.hooks.models.encoder import EncoderModel
from probe.hooks.models.huggingface import HuggingFaceModel

Array = np.ndarray[Any, Any]

TOLERANCE: Final = 1e-5
"""Largest deviation from float64, over max(1, |x|), that counts as exact."""
ROUNDING: Final = 4.0
"""Where the model's own eager attention in float32 is further off, this many times its deviation is allowed."""


_BY_VALUE: Final = {"argmax_key", "top_keys", "num_heads", "num_kv_heads"}
"""Positions are right where the probability at them is; numbers of heads are what the shapes say."""


@dataclass
class Outcome:
    """How one way went."""

    verdict: str
    """`exact`, `refused`, `wrong`, or `failed` (an error that is none of the toolkit's refusals)."""
    reason: str = ""
    """Why, where it is not exact."""
    deviation: float = 0.0
    """Largest deviation from float64 over max(1, |x|), of everything compared."""
    compared: int = 0
    """Arrays that were compared."""


@dataclass
class Checked:
    """What was found of one model."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By way."""
    features: list[str] = field(default_factory=list)
    """What its attention has."""
    how: str = ""
    """What it was compared with."""
    seen: set[str] = field(default_factory=set)
    """Arrays that were captured."""
    compared: set[str] = field(default_factory=set)
    """Arrays that were compared, in one layer at least."""


def check(model: PreTrainedModel, *, seed: int = 0, backend: str = "huggingface") -> Checked:
    """Capture the model, had by a backend, in every way and compare every array with float64."""
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, NUM_TOKENS).tolist()
    found = Checked()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_two = getattr(model.config, "is_encoder_decoder", False)
        ids = torch.tensor([tokens])
        try:
            with torch.no_grad():
                model(input_ids=ids, **({"decoder_input_ids": ids} if of_two else {}))
        except Exception as error:  # noqa: BLE001
            outcome = Outcome("unchecked", f"transformers does not run it: {_failed(error).reason}")
            found.outcomes = dict.fromkeys(WAYS, outcome)
            return found
        try:
            loaded = _loaded(model, backend)
            features, untouched = two_texts.see(loaded, tokens) if of_two else watched(loaded, tokens)
            found.features = features.words(loaded)
        except Exception as error:  # noqa: BLE001 (whatever a model raises is told of)
            outcome = _failed(error)
            found.outcomes = dict.fromkeys(WAYS, outcome)
            return found
        copies = _copies(model, tokens)
        # What reads its text at once has no chunks of it, and an encoder answers nothing.
        alone = isinstance(loaded, EncoderModel)
        for way in two_texts.WAYS if of_two else ("prefill", "padded") if alone else WAYS:
            try:
                if of_two:
                    found.outcomes[way] = _of_two_texts(way, loaded, tokens, copies, found)
                else:
                    found.outcomes[way] = _compared(WAYS[way](loaded, tokens), copies, loaded, features, found)
            except Exception as error:  # noqa: BLE001
                found.outcomes[way] = _failed(error)
        if not untouched:
            found.outcomes["prefill"] = Outcome("wrong", "watching the model changes its logits")
    return found


def _of_two_texts(
    way: str, loaded: HuggingFaceModel, tokens: list[int], copies: list[PreTrainedModel | str], found: Checked
) -> Outcome:
    exact, single = copies
    if isinstance(exact, str):
        return Outcome("unchecked", f"its eager attention does not run in float64: {exact}")
    read, outcome = two_texts.WAYS[way](loaded, tokens), Outcome("exact")
    wanted = two_texts.expected_arrays(exact, read)
    rounded = {} if isinstance(single, str) else two_texts.expected_arrays(single, read)
    for place, scan in read.scans.items():
        got = {name: result.values.numpy() for name, result in scan.finish().items()}
        _compare(f"{place[0]} {place[1]}", got, wanted[place], rounded.get(place, {}), outcome, found)
    found.how = "the probabilities that its eager attention hands out, in float64"
    return outcome


def _loaded(model: PreTrainedModel, backend: str) -> HuggingFaceModel:
    if backend == "huggingface":
        return load(model)
    # Other libraries take the place of modules, or wrap their forwards: they get a model of their own.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        words = {f"w{index}": index for index in range(VOCABULARY)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
        special = {"unk_token": "w0", "pad_token": "w0", "bos_token": "w1", "eos_token": "w2"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
        return load(folder, backend=backend)


def _copies(model: PreTrainedModel, tokens: list[int]) -> list[PreTrainedModel | str]:
    """Return copies in float64 and float32 with eager attention; with the model's own where eager is another model."""
    made = [_copy(model, dtype, "eager") for dtype in (torch.float64, torch.float32)]
    single = made[1]
    if not isinstance(single, str):
        ids = torch.tensor([tokens])
        inputs = {"input_ids": ids}
        if getattr(model.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids
        with torch.no_grad():
            own, eager = model(**inputs).logits, single(**inputs).logits
        if float((own - eager).abs().max()) <= 1e-2 * float(own.abs().max()):
            return list(made)
    # transformers' eager attention of ALiBi in Falcon adds the bias twice, SDPA once.
    return [_copy(model, dtype, model.config._attn_implementation) for dtype in (torch.float64, torch.float32)]


def _copy(model: PreTrainedModel, dtype: torch.dtype, attention: str) -> PreTrainedModel | str:
    try:
        return eager_copy(model, dtype, attention)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _failed(error: Exception) -> Outcome:
    said = " ".join(str(error).split())[:400]
    return (
        Outcome("refused", said)
        if isinstance(error, ProbeError)
        else Outcome("failed", f"{type(error).__name__}: {said}")
    )


def _compared(
    samples: list[Captured], copies: list[PreTrainedModel | str], loaded: HuggingFaceModel, features: Features,
    found: Checked,
) -> Outcome:  # fmt: skip
    outcome = Outcome("exact")
    for captured in samples:
        exact, single = (_run(each, captured) for each in copies)
        in_single = False
        if isinstance(exact, str) and isinstance(single, EagerRun):
            # XGLM's masks do not fit into float64's copy of it.
            in_single, said = True, single.source.replace("float64", "float32, as it fails in float64")
            exact = dataclasses.replace(single, source=said)
        if not isinstance(exact, EagerRun):
            return Outcome("unchecked", f"its eager attention does not run in float64: {exact}")
        wanted = _wanted(exact, captured, loaded, features)
        if isinstance(wanted, str):
            return Outcome("unchecked", wanted)
        found.how = exact.source or found.how
        if loaded.recurrent_layers and isinstance(copies[0], PreTrainedModel):
            _want_states(copies[0], captured, wanted, found)
        rounded = _wanted(single, captured, loaded, features) if isinstance(single, EagerRun) else {}
        rounding = {} if isinstance(rounded, str) else rounded
        for place, arrays in wanted.items():
            got = captured.layers.get(place, {}) if place is not None else {"loss": captured.loss}
            loose = in_single or bool(loaded.recurrent_layers)
            _compare(place, got, arrays, rounding.get(place, {}), outcome, found, loose=loose)
    return outcome if outcome.compared else Outcome("unchecked", "there was nothing to compare")


def _run(copy: PreTrainedModel | str, captured: Captured) -> EagerRun | str:
    if isinstance(copy, str):
        return copy
    try:
        if captured.inputs:
            whole = captured.inputs["input_ids"].shape
            ranges = [(0, whole[1])] * whole[0]
            ranges[captured.sample] = captured.kept
            run = eager_run(copy, captured.inputs, ranges)
            of = captured.sample
            return EagerRun([run.samples[of]], [run.hidden[of]], [run.logits[of]], run.source)
        return eager_run(copy, {"input_ids": torch.tensor([captured.tokens])}, [(0, len(captured.tokens))])
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _wanted(
    run: EagerRun, captured: Captured, loaded: HuggingFaceModel, features: Features
) -> dict[int | None, dict[str, Array]] | str:
    """Return what each layer's arrays must be (None: what is of no layer), or a text that says why there is nothing."""
    attending = sorted(features.layers)
    (patterns,), (hidden,), (logits,) = run.samples, run.hidden, run.logits
    if attending and not patterns:
        return "its eager attention shows no probabilities"
    if len(patterns) != len(attending):
        return f"its eager attention shows {len(patterns)} patterns where {len(attending)} layers were captured"
    wanted: dict[int | None, dict[str, Array]] = {}
    for index, (layer, pattern) in enumerate(zip(attending, patterns, strict=True)):
        facts = features.layers[layer]
        if pattern.probability.shape[0] != facts["heads"]:
            return f"its eager attention shows {pattern.probability.shape[0]} heads, {facts['heads']} were captured"
        if facts["sinks"]:
            _take_sinks_off(pattern, loaded.attention_layers[layer].module())
        below = patterns[index - 1] if index else None
        wanted[layer] = expected(
            pattern, below, captured.tokens, first_row=captured.first_row, spans=spans(captured.first_row + 1),
            num_kv_heads=facts["kv_heads"],
        )  # fmt: skip
        if facts["alibi"]:
            # Some models' bias differs from ours by a constant in each row.
            for name in ("max_logit", "log_sum_exp"):
                wanted[layer].pop(name, None)
    if captured.loss is not None:
        if not np.isnan(captured.loss).all():
            wanted[None] = {"loss": expected_loss(logits, captured.tokens)}
        for layer, each in enumerate(_aligned(hidden, captured, loaded.num_layers)):
            wanted.setdefault(layer, {}).update(expected_of_hidden(each))
    return wanted


def _aligned(hidden: list[Array], captured: Captured, num_layers: int) -> list[Array]:
    """Return the outputs of the first layers; Mamba's hidden states begin there, others' with the embeddings."""
    if len(hidden) != num_layers:
        return []
    norm = captured.layers.get(0, {}).get("residual_norm")
    first = [np.inf if norm is None else deviation(norm, np.linalg.norm(each, axis=-1)) for each in hidden[:2]]
    return hidden[:-1] if first[0] < first[-1] else hidden[1:]


def _want_states(
    copy: PreTrainedModel, captured: Captured, wanted: dict[int | None, dict[str, Array]], found: Checked
) -> None:
    try:
        states = states_by_step(copy, captured.tokens)
    except Exception as error:  # noqa: BLE001
        found.seen.add(f"states, token by token: {type(error).__name__} in float64")
        return
    for layer, each in states.items():
        got = captured.layers.get(layer, {})
        for suffix, wanted_states in ((f"every_{EVERY}", each), ("last", each[-1:])):
            if f"state_norm_{suffix}" in got:
                num_heads = len(got[f"state_norm_{suffix}"])
                wanted.setdefault(layer, {}).update(of_states(wanted_states, num_heads, suffix))
    if states:
        states_how = "states: its own cache, token by token, in float64"
        found.how = "; ".join(dict.fromkeys(filter(None, [*found.how.split("; "), states_how])))


def _take_sinks_off(pattern: Pattern, module: Any) -> None:
    """Scale probabilities that a model hands out without its learned sinks' share, by which it scales its output."""
    sinks = getattr(module, "sinks", None)
    if pattern.logit is None or sinks is None or bool((pattern.probability.sum(-1) < 0.999).any()):
        return
    largest = pattern.logit.max(-1, keepdims=True)
    keys = np.exp(pattern.logit - largest).sum(-1, keepdims=True)
    sink = np.exp(sinks.detach().double().numpy()[:, None, None] - largest)
    pattern.probability = pattern.probability * keys / (keys + sink)
    pattern.logit = None


def _compare(
    layer: int | str | None, got: Mapping[str, Array | None], wanted: Mapping[str, Array], rounded: Mapping[str, Array],
    outcome: Outcome, found: Checked, *, loose: bool = False,
) -> None:  # fmt: skip
    got = {name: _cut(each, wanted.get(name)) for name, each in got.items()}
    got |= _derived(got, wanted)
    offs = [deviation(rounded[name], values) for name, values in wanted.items() if name in rounded]
    # Rounding that changes what a model does at all (another expert) proves nothing.
    own = max((each for each in offs if each < 1e-2), default=0.0)
    # Two computations in float32 have each its rounding, and a state that is carried on adds up its own.
    allowed = max(TOLERANCE * (ROUNDING if loose else 1), ROUNDING * own)
    for name, values in wanted.items():
        actual = got.get(name)
        if actual is None:
            continue
        outcome.compared += 1
        found.compared.add(name)
        off = deviation(actual, values)
        if off > allowed and outcome.verdict == "exact":
            where = "" if layer is None else f" in layer {layer}"
            outcome.verdict, outcome.reason = (
                "wrong",
                f"{name}{where} is off by {off:.2g} where {allowed:.2g} is allowed",
            )
        outcome.deviation = max(outcome.deviation, off)
    found.seen |= {name for name, values in got.items() if values is not None} - _BY_VALUE


def _derived(got: Mapping[str, Array | None], wanted: Mapping[str, Array]) -> dict[str, Array]:
    """Return what shows that a position or an unnormalised number is right: the probability that it stands for."""
    derived = {}
    largest, normaliser = got.get("max_logit"), got.get("log_sum_exp")
    if largest is not None and normaliser is not None:
        derived["exp(max_logit - log_sum_exp)"] = np.exp(largest - normaliser)
    pattern = wanted.get("attention_map")
    argmax, top = got.get("argmax_key"), got.get("top_keys")
    if pattern is not None and argmax is not None:
        derived["probability of argmax_key"] = np.take_along_axis(pattern, argmax[..., None].astype(int), -1)[..., 0]
    if pattern is not None and top is not None:
        rows = pattern[:, -top.shape[1] :]
        picked = np.take_along_axis(rows, np.maximum(top, 0).astype(int), -1)
        derived["probability of top_keys"] = np.where(top < 0, 0.0, picked)
    return derived


def _cut(actual: Array | None, wanted: Array | None) -> Array | None:
    """Return a layer's own part of an array that its trace fills with NaN to the widest layer's."""
    if actual is None or wanted is None or actual.ndim != wanted.ndim or actual.shape[-1] <= wanted.shape[-1]:
        return actual
    kept, rest = actual[..., : wanted.shape[-1]], actual[..., wanted.shape[-1] :]
    return kept if bool(np.isnan(rest).all()) else actual


def deviation(actual: Array, wanted: Array) -> float:
    """Return the largest |actual − wanted| / max(1, |wanted|); infinity where shapes or missing values differ."""
    actual, wanted = np.asarray(actual, dtype=float), np.asarray(wanted, dtype=float)
    if actual.shape != wanted.shape or bool((np.isnan(actual) != np.isnan(wanted)).any()):
        return float("inf")
    off = np.abs(actual - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.nanmax(off, initial=0.0))
