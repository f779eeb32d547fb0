"""How a model knows where tokens stand: which kind of positions each layer has, its rotary frequencies, and the length
that it was trained for."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from probe.errors import NotReproducible
from probe.hooks.attention.interface import text_decoder
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.placement import input_device
from probe.hooks.loading.specimen_card import specimen_card
from probe.kernels.call import Call

_seen: weakref.WeakKeyDictionary[PreTrainedModel, dict[int, str]] = weakref.WeakKeyDictionary()
_NUM_TOKENS = 4


def positions(model: PreTrainedModel, num_tokens: int) -> dict[str, Any]:
    """Return what a trace records of positions, for a prompt of `num_tokens`, as JSON values.

    `layers` gives each attention layer its `kind` (`rotary`, `ALiBi`, `relative bias`, `learned`, `sinusoidal`, `none`,
    or `unknown` with the reason) and the name of its rotary `table`; `rotary` holds each table: `type` (as transformers
    calls it), `parameters`, `inverse_frequencies` in radians a token, as they are used for a prompt of this length,
    the factor on cosine and sine (`attention_scaling`) and how many channels of a head turn; `training_length` says
    how many tokens, and which field of the configuration says so.

    The kind is seen, not looked up: tokens are put through once at their positions and once one further on. Queries
    that differ, and only by a rotation, are rotary; what ALiBi or a bias adds is in the calls. Of a model whose weights
    are elsewhere no layer is known.
    """
    if input_device(model).type == "meta":
        return {"num_tokens": num_tokens, "layers": {}, "rotary": {}, "training_length": training_length(model, {})}
    kinds = dict(_kinds(model))
    tables = {name: each for name, each in _tables(model, num_tokens) if each["inverse_frequencies"]}
    layers: dict[str, dict[str, Any]] = {}
    for layer, kind in sorted(kinds.items()):
        layers[str(layer)] = {"kind": kind}
        if kind == "rotary":
            layers[str(layer)]["table"] = _table_of(model, layer, tables)
    used = {each["table"] for each in layers.values() if each.get("table")}
    unsure = any(each["kind"] == "rotary" and not each["table"] for each in layers.values())
    rotary = {name: each for name, each in tables.items() if name in used or unsure}
    return {
        "num_tokens": num_tokens,
        "layers": layers,
        "rotary": rotary,
        "training_length": training_length(model, rotary),
    }


def training_length(model: PreTrainedModel, rotary: dict[str, Any]) -> dict[str, Any] | None:
    """Return the length that the model was trained for and where that is said; None where nothing says it."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    # A specimen's card knows; its configuration says how long a prompt may run.
    trained = specimen_card(model).get("trained_length")
    if isinstance(trained, int):
        return {"tokens": trained, "source": "specimen.json"}
    for table in rotary.values():
        length = table["parameters"].get("original_max_position_embeddings")
        if length:
            source = "original_max_position_embeddings"
            return {"tokens": int(length), "source": source, "extended_to": int(longest) if longest else None}
    for source in ("max_position_embeddings", "seq_length", "max_seq_len"):
        length = getattr(config, source, None)
        if isinstance(length, int) and length > 0:
            found: dict[str, Any] = {"tokens": length, "source": source}
            if any(table["type"] == "linear" for table in rotary.values()):
                found["note"] = "the configuration does not say whether this is before or after linear scaling"
            return found
    return None


@dataclass(eq=False)
class _recorder(tap):
    """Each layer's queries, and what its calls add to the logits by distance."""

    wants_calls = True

    def __post_init__(self) -> None:
        self.queries: dict[int, Tensor] = {}
        self.bias: dict[int, str] = {}

    def change_query(self, here: site, query: Tensor) -> Tensor:
        self.queries[here.layer] = query[0].detach().double()
        return query

    def call(self, sample: int, call: Call) -> None:
        if call.alibi_slope is not None:
            self.bias[call.layer] = "ALiBi"
        elif call.distance_bias is not None:
            self.bias[call.layer] = "relative bias"


def _kinds(model: PreTrainedModel) -> dict[int, str]:
    if model not in _seen:
        _seen[model] = _look(model)
    return _seen[model]


def put_through(model: PreTrainedModel, *watching: tap) -> None:
    """Put the same few tokens through once for each of these, each time one position further on.

    Where the model's forward takes no positions they stand where they stood. Raises what the forward raises.
    """
    tokens = torch.arange(3, 3 + _NUM_TOKENS, device=input_device(model))[None]
    tokens = tokens % int(model.config.get_text_config().vocab_size)
    where = torch.arange(_NUM_TOKENS, device=tokens.device)[None]
    for shift, each in enumerate(watching):
        given = {"position_ids": where + shift} if _takes_positions(model) else {}
        if getattr(model.config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = tokens
        with torch.no_grad(), attached(model, each, alone=True):
            model(input_ids=tokens, use_cache=False, **given)


def _takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _look(model: PreTrainedModel) -> dict[int, str]:
    at_first, further_on = _recorder(), _recorder()
    try:
        put_through(model, at_first, further_on)
    except (NotReproducible, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        return {layer: f"unknown: {type(error).__name__}" for layer in at_first.queries}
    absolute = _absolute(model)
    found = {}
    for layer, query in at_first.queries.items():
        if layer in at_first.bias:
            found[layer] = at_first.bias[layer]
        elif not _takes_positions(model):
            found[layer] = absolute or ("rotary" if _has_table(model) else "unknown: its forward takes no positions")
        else:
            found[layer] = _kind(query, further_on.queries[layer], absolute)
    return found


def _kind(query: Tensor, further_on: Tensor, absolute: str | None) -> str:
    """Return the kind of a layer whose queries, one position further on, are `further_on`."""
    size, off = query.norm(dim=-1), (query - further_on).norm(dim=-1)
    if bool((off <= 1e-2 * size).all()):
        # What is added to the embedding may move a query by little.
        return absolute or "none"
    turned = bool(((size - further_on.norm(dim=-1)).abs() <= 1e-2 * size).all())
    if absolute:
        return absolute
    return "rotary" if turned else "unknown: its queries change with the position, and not by a rotation"


def _absolute(model: PreTrainedModel) -> str | None:
    """Return which table of positions is added to the embeddings, if any."""
    config, words = model.config.get_text_config(), model.get_input_embeddings()
    length = getattr(config, "max_position_embeddings", None)
    for name, module in text_decoder(model).named_modules():
        if "Sinusoidal" in type(module).__name__ and "Rotary" not in type(module).__name__:
            return "sinusoidal"
        if not isinstance(module, nn.Embedding) or module is words:
            continue
        named = "position" in name.rsplit(".", 1)[-1].lower() or name.rsplit(".", 1)[-1] == "wpe"
        # OPT's table has two rows more than it has positions.
        if named or (length and 0 <= module.num_embeddings - int(length) <= 2):
            return "learned"
    return None


def _has_table(model: PreTrainedModel) -> bool:
    return next(_tables(model, 1), None) is not None


def _tables(model: PreTrainedModel, num_tokens: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rotary tables that the decoder's modules hold, by module, and by layer type where one has several."""
    decoder = text_decoder(model)
    for path, module in decoder.named_modules():
        if "_original_component" in module._modules:
            # A TransformerLens component, which answers for what it stands in the place of.
            continue
        path = path.replace("._original_component", "")
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            yield path, _table(module, None, num_tokens)
            continue
        kinds = getattr(module, "rope_type", None)
        for kind in kinds if isinstance(kinds, dict) else ():
            if isinstance(getattr(module, f"{kind}_inv_freq", None), Tensor):
                yield str(kind), _table(module, str(kind), num_tokens)
        sines = getattr(module, "embed_positions", None)
        if isinstance(sines, Tensor) and sines.ndim == 2 and len(sines) > 1:
            # GPT-J keeps the sines and cosines of every position.
            sine, cosine = sines[1].double().chunk(2)
            yield path, _described("default", {}, torch.atan2(sine, cosine), 1.0)


def _table(module: nn.Module, kind: str | None, num_tokens: int) -> dict[str, Any]:
    prefix = f"{kind}_" if kind else ""
    rope_type = getattr(module, "rope_type", "default")
    rope_type = rope_type[kind] if isinstance(rope_type, dict) else str(rope_type)
    config = getattr(module, "config", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = dict(parameters.get(kind) or {} if kind else parameters)
    frequencies: Tensor = getattr(module, f"{prefix}inv_freq")
    scaling = float(getattr(module, f"{prefix}attention_scaling", getattr(module, "attention_scaling", 1.0)))
    if rope_type in ("dynamic", "longrope"):
        # The module's own are those of the length that it saw last.
        length = {} if kind is None else {"layer_type": kind}
        first = getattr(module, f"{prefix}original_inv_freq", frequencies)
        limit = parameters.get("original_max_position_embeddings") if rope_type == "longrope" else None
        limit = int(limit or getattr(module, "original_max_seq_len", 0) or 0)
        frequencies = first
        if limit and num_tokens > limit:
            make = ROPE_INIT_FUNCTIONS[rope_type]
            frequencies, scaling = make(config, frequencies.device, seq_len=num_tokens, **length)
    plain = {name: value for name, value in parameters.items() if isinstance(value, int | float | str | list | bool)}
    return _described(rope_type, plain, frequencies, scaling)


def _described(rope_type: str, parameters: dict[str, Any], frequencies: Tensor, scaling: float) -> dict[str, Any]:
    values = [float(value) for value in frequencies.detach().flatten().double().tolist()]
    return {
        "type": rope_type,
        "parameters": parameters,
        "inverse_frequencies": values,
        "attention_scaling": float(scaling),
        "rotated_channels": 2 * sum(value != 0 for value in values),
    }


def _table_of(model: PreTrainedModel, layer: int, tables: dict[str, Any]) -> str | None:
    """Return the name of the table that a layer turns by: its own, its type's, or the only one; None where unsure."""
    own = [name for name in tables if f".{layer}." in f".{name}."]
    if len(own) == 1:
        return own[0]
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if kinds and layer < len(kinds) and kinds[layer] in tables:
        return str(kinds[layer])
    return next(iter(tables)) if len(tables) == 1 else None
