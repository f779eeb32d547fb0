"""Whether what is captured of a model is what its own eager attention computes, on a short prompt, once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

import probe
from probe.errors import NotReproducible
from probe.hooks.attention.interface import text_decoder
from probe.hooks.attention.switch import attached, resting, watchers
from probe.hooks.attention.tap import tap
from probe.hooks.loading.compiled import uncompiled
from probe.hooks.loading.placement import input_device
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.kernels.call import Call
from probe.kernels.dense import Dense

FORMAT: Final = 2
"""Version of the cached form."""
NUM_TOKENS: Final = 16
"""Tokens of the prompt."""
UNCHECKED: Final = "not compared: --no-eager-check"
"""What is recorded where nobody wanted the check."""

_log = logging.getLogger("probe")
_known: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()
_HANDED_OUT = {"encoder": "encoder_attentions", "cross": "cross_attentions"}
_COMPARED = ("scale", "causal", "window", "softcap", "num_heads", "num_kv_heads")


def compared_with_eager(model: HuggingFaceModel) -> str:
    """Hold a model's calls against its own eager attention, and return in words how that went, for the provenance.

    A prompt of 16 tokens goes through three times: as loaded, and twice with eager attention, once watched and once
    asked for its probabilities. What the calls say must agree with these to the rounding of the model's dtype, and the
    calls as loaded must say what eager ones say. The model is neither copied nor changed: its configurations name
    another attention for the length of a forward. Raises `NotReproducible` with the layer and the size of the
    difference. Where a model has no eager attention, or hands nothing out, or is had by another library, the answer
    says so; the verification of each call's output stays.

    A revision that has passed is remembered in the user's cache folder, by its weights, configuration and libraries.
    """
    hf = model.hf
    if hf in _known:
        return _known[hf]
    if model.is_remote:
        return "not compared: the model is not on this machine; each call's output is recomputed"
    if model.backend == "transformer_lens":
        # The bridge's components stand in for the model's attention, eager or not: see `bridge_check`.
        return str(getattr(model, "compared_with_pattern", ""))
    if watchers(hf):
        # The attention's name is taken, so eager attention would go unseen; without the block it is compared.
        return "not compared: it is read within an intervention; each call's output is recomputed"
    path = cache_folder() / f"{_key(model)}.json"
    said = _remembered(path)
    if said is None:
        try:
            said = _compare(model)
        except _NotComparable as reason:
            said = f"not compared: {reason}; each call's output is recomputed"
        _remember(path, said)
    _known[hf] = said
    return said


def cache_folder() -> Path:
    """Return where it is remembered which models have passed: `PROBE_CACHE`, or the platform's place for caches."""
    if chosen := os.environ.get("PROBE_CACHE"):
        return Path(chosen) / "eager-checks"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "longcontext-probe" / "eager-checks"


class _NotComparable(Exception):
    """Why there is nothing to compare with."""


@dataclass(eq=False)
class _calls(tap):
    wants_calls = True
    part = None

    def __post_init__(self) -> None:
        self.found: dict[tuple[str, int], list[Call]] = {}

    def call(self, sample: int, call: Call) -> None:
        self.found.setdefault((call.part, call.layer), []).append(call)


def _compare(model: HuggingFaceModel) -> str:
    hf = model.hf
    inputs = _inputs(model)
    with torch.no_grad(), uncompiled(hf):
        loaded = _calls()
        with attached(hf, loaded, alone=True):
            hf(**inputs, use_cache=False)
        if not loaded.found:
            raise _NotComparable("it has no attention")
        eager = _calls()
        try:
            with _eager_attention(hf):
                with resting(hf):
                    output = hf(**inputs, use_cache=False, output_attentions=True)
                with attached(hf, eager, alone=True):
                    hf(**inputs, use_cache=False)
        except NotReproducible as error:
            # It ran: what cannot be reproduced of it is no agreement with what was loaded, which can.
            raise NotReproducible(f"its eager attention is not what it has as loaded: {error}") from error
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise _NotComparable(f"its eager attention does not run here ({type(error).__name__}: {said})") from error
    largest, at_most = 0.0, 0.0
    for part in sorted({part for part, _ in loaded.found}):
        off, allowed = _compare_part(model, part, loaded, eager, output)
        largest, at_most = max(largest, off), max(at_most, allowed)
    layers = len(loaded.found)
    return (
        f"{NUM_TOKENS} tokens, {layers} layer{'s' if layers > 1 else ''}: probabilities differ by at most "
        f"{largest:.1e}, where {at_most:.1e} is allowed"
    )


def _compare_part(
    model: HuggingFaceModel, part: str, loaded: _calls, eager: _calls, output: Any
) -> tuple[float, float]:
    layers = sorted(layer for of, layer in loaded.found if of == part)
    weights = _handed_out(output, part, len(layers))
    largest = at_most = 0.0
    for layer, handed_out in zip(layers, weights, strict=True):
        calls, own = eager.found.get((part, layer), []), loaded.found[part, layer]
        where = f"{model.name}, {'' if part == 'self' else part + ' '}layer {layer}"
        if [_facts(call) for call in calls] != [_facts(call) for call in own]:
            raise NotReproducible(
                f"{where}: as it was loaded its attention is another than its eager attention: "
                f"{[_facts(call) for call in own]} against {[_facts(call) for call in calls]}"
            )
        off, allowed = _difference(calls, handed_out[0].double().cpu())
        if off > allowed:
            raise NotReproducible(
                f"{where}: what is captured is not what its own eager attention computes: probabilities differ by "
                f"{off:.3g} where {allowed:.3g} is allowed (16 tokens; --no-eager-check, or check=False, goes on "
                "regardless)"
            )
        largest, at_most = max(largest, off), max(at_most, allowed)
    return largest, at_most


def _handed_out(output: Any, part: str, num_layers: int) -> list[Tensor]:
    names = [_HANDED_OUT[part]] if part in _HANDED_OUT else ["decoder_attentions", "attentions"]
    given = next((each for name in names if (each := getattr(output, name, None))), None)
    if given is None and part == "encoder":
        given = getattr(output, "attentions", None)
    found = [each for each in given or () if isinstance(each, Tensor) and each.ndim == 4]
    # What linear attention hands out under the same name are no probabilities.
    found = [each for each in found if bool((each >= 0).all()) and float(each.sum(-1).max()) < 1.1]
    if len(found) != num_layers:
        raise _NotComparable(f"it hands out the probabilities of {len(found)} layers, {num_layers} were captured")
    return found


def _difference(calls: list[Call], handed_out: Tensor) -> tuple[float, float]:
    """Return the largest difference of probabilities, and what the rounding of the model's dtype allows."""
    largest = allowed = 0.0
    for call in calls:
        dense = Dense(call)
        got = dense.probability.cpu()
        first = call.query_start
        rows = handed_out[:, first : first + call.num_queries, call.key_start : call.key_start + call.num_keys]
        if rows.shape != got.shape:
            raise _NotComparable(f"it hands out probabilities of shape {tuple(handed_out.shape)}")
        if call.sink_logit is not None and float(rows.sum(-1).min()) > 0.99:
            # Some scale the output by the sinks' share, and hand out the probabilities without it.
            got = got / got.sum(-1, keepdim=True)
        eps = torch.finfo(call.query.dtype).eps
        logits = dense.logit.cpu()
        size = float(logits.masked_fill(~logits.isfinite(), 0).abs().max())
        # Eager attention rounds its logits, and what it hands out, to the model's dtype.
        allowed = max(allowed, 4 * eps * (1 + size) + 1e-6)
        largest = max(largest, float((got - rows).abs().nan_to_num(nan=torch.inf).max()))
    return largest, allowed


def _facts(call: Call) -> dict[str, Any]:
    facts = {name: getattr(call, name) for name in _COMPARED}
    extras = ("sink_logit", "alibi_slope", "distance_bias", "document", "key_visible")
    return {**facts, **{name: getattr(call, name) is not None for name in extras}}


def _inputs(model: HuggingFaceModel) -> dict[str, Tensor]:
    # Spread over the vocabulary, the first ids left out: they often stand for padding and the like.
    step = max(1, model.vocab_size // (NUM_TOKENS + 2))
    length = min(NUM_TOKENS, model.max_length or NUM_TOKENS)
    ids = (torch.arange(1, length + 1, device=input_device(model.hf)) * step)[None] % model.vocab_size
    is_two = bool(getattr(model.hf.config, "is_encoder_decoder", False))
    return {"input_ids": ids, "decoder_input_ids": ids} if is_two else {"input_ids": ids}


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block every configuration that the model's modules read names eager attention."""
    configs: dict[int, Any] = {}
    for module in (model, *text_decoder(model).modules(), *model.modules()):
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = config
    with ExitStack() as stack:
        for config in configs.values():
            # The property's setter would also overwrite the sub-configurations, which may differ.
            stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal)
            config._attn_implementation_internal = "eager"
        yield


def _key(model: HuggingFaceModel) -> str:
    facts = model.provenance()
    kept = ("architecture", "backend", "weights_sha256", "dtype", "device", "attention_implementation", "versions",
            "quantisation", "adapters", "device_map")  # fmt: skip
    config = model.hf.config.to_json_string(use_diff=False)
    said = {"format": FORMAT, "probe": probe.__version__, "config": config, **{name: facts.get(name) for name in kept}}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _remembered(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        found = json.loads(text)
        if isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("said"), str):
            return str(found["said"])
        reason = "it is of another form"
    except ValueError as error:
        reason = str(error)
    _log.warning("%s is no record of a comparison with eager attention (%s), and is made anew", path, reason)
    return None


def _remember(path: Path, said: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({"format": FORMAT, "said": said}, file)
        os.replace(file.name, path)
    except OSError as error:
        _log.warning("the comparison with eager attention could not be remembered in %s: %s", path.parent, error)
