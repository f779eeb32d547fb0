"""A transformers model whose attention calls can be watched and whose sequences can be stepped."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible, UsageError
from probe.hooks.attention.interface import loaded_attention, name_of, named, text_decoder
from probe.hooks.attention.layers import attention_layer, attention_layers
from probe.hooks.attention.rotation_of_whole import rotated_as_whole
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.loading.compiled import compiled_parts
from probe.hooks.loading.device_and_dtype import found_device, found_dtype
from probe.hooks.loading.find_model import find_model
from probe.hooks.loading.given_model import transformers_model
from probe.hooks.loading.peft_adapters import adapters
from probe.hooks.loading.placement import check_loaded, check_parts, chosen_map, input_device, move, placed
from probe.hooks.loading.positions import positions
from probe.hooks.loading.quantisation import quantisation
from probe.hooks.loading.remote_code import code_of, remote_code
from probe.hooks.loading.specimen_card import specimen_card
from probe.hooks.loading.tokenisation import check_tokenizer, tokenisation
from probe.hooks.loading.weights import tokenizer_sha256, weights_sha256
from probe.hooks.recurrence.layer import kinds_of_layers, recurrent_layer, recurrent_layers
from probe.hooks.recurrence.switch import OnRecurrence, watched_recurrences
from probe.hooks.sequence import decoding
from probe.hooks.sequence.decoding import Cache, decoding_mark, decoding_state
from probe.hooks.sequence.prefill import OnLogits, prefill
from probe.hooks.sequence.residual_stream import watched_residuals
from probe.kernels.call import Call

OnCall = Callable[[int, Call], None]
OnResidual = Callable[[int, int, Float[Tensor, "token channel"]], None]


class HuggingFaceModel:
    """A transformers model with the attention that it was loaded with, and what the toolkit asks of it."""

    backend: ClassVar[str] = "huggingface"
    """The library that it is had by (see `probe.hooks.loading.backend`)."""
    is_remote: ClassVar[bool] = False
    """Whether it runs elsewhere, so that prompts leave this machine."""
    opened: Mapping[str, Any] | None = None
    """The options with which `probe.load` opened it by name, and opens it again; None for an object given to it."""

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        tokenizer_error: str | None = None,
        compiled: Sequence[str] | None = None,
    ) -> None:
        self.hf = hf
        """The transformers model itself."""
        self.tokenizer = tokenizer
        """Its tokenizer, or None."""
        self.tokenizer_error = tokenizer_error
        """Why the tokenizer that belongs to the model could not be loaded, in one line; None where nothing failed."""
        self.name = name or name_of(hf)
        """The name that it was asked for by."""
        self.compiled = tuple(compiled_parts(hf)) if compiled is None else tuple(compiled)
        """What of it torch.compile had compiled; it runs uncompiled here."""
        self.code: tuple[str, ...] = ()
        """Modules of the checkpoint's own that were run to load it."""
        self._weights_sha256: tuple[str, str] | None = None

    def __repr__(self) -> str:
        attention = self.attention_implementation
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, {self.device}, attention {attention})"

    @property
    def device(self) -> torch.device:
        """Where token ids go in; other layers may lie elsewhere (see `probe.hooks.loading.placement`)."""
        return input_device(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = self.hf.dtype
        return dtype

    @property
    def attention_implementation(self) -> str:
        """The attention that the model was loaded with, in transformers' words."""
        return loaded_attention(self.hf)

    @property
    def attention_in_chunks(self) -> str:
        """How the second and later chunks of a prompt attend: which of two equal ways computes it."""
        if self.attention_implementation != "sdpa":
            return "the model's own, with its mask"
        return "past and diagonal merged by log-sum-exp where the mask is plainly causal, else with the model's mask"

    @property
    def num_layers(self) -> int:
        """Number of layers, those without attention included."""
        return int(self.hf.config.get_text_config().num_hidden_layers)

    @cached_property
    def attention_layers(self) -> dict[int, attention_layer]:
        """The layers that attend, by index; raises `NotReproducible` where they cannot be reached."""
        return attention_layers(self.hf)

    @cached_property
    def recurrent_layers(self) -> dict[int, recurrent_layer]:
        """The layers that recur and of which the kind is known, by index; a layer may both recur and attend."""
        return recurrent_layers(self.hf)

    @property
    def num_heads(self) -> list[int]:
        """Query heads of every layer; 0 for a layer that does not attend."""
        return [self.attention_layers[i].num_heads if i in self.attention_layers else 0 for i in range(self.num_layers)]

    @property
    def num_kv_heads(self) -> list[int]:
        """Key-value heads of every layer; 0 for a layer that does not attend."""
        layers = self.attention_layers
        return [layers[i].num_kv_heads if i in layers else 0 for i in range(self.num_layers)]

    @property
    def head_dim(self) -> list[int]:
        """Width of queries and keys in every layer; 0 for a layer that does not attend."""
        return [self.attention_layers[i].head_dim if i in self.attention_layers else 0 for i in range(self.num_layers)]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.hf.config.get_text_config().vocab_size)

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the configuration permits, in tokens; None where it sets no limit."""
        length = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def hard_limit(self) -> bool:
        """Whether a sequence beyond `max_length` cannot run: learned positions end there, RoPE merely degrades."""
        length = self.max_length
        if length is None:
            return False
        words = self.hf.get_input_embeddings()
        # OPT's table has two rows more than it has positions.
        return any(
            isinstance(module, nn.Embedding) and module is not words and 0 <= module.num_embeddings - length <= 2
            for module in text_decoder(self.hf).modules()
        )

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights as they are at the first asking, and again where an adapter was added, merged or left."""
        adapted = json.dumps(adapters(self.hf), sort_keys=True)
        if self._weights_sha256 is None or self._weights_sha256[0] != adapted:
            self._weights_sha256 = adapted, weights_sha256(self.hf)
        return self._weights_sha256[1]

    def provenance(self) -> dict[str, Any]:
        """What the model is and what runs it, as JSON values."""
        return {
            "model": self.name,
            "backend": self.backend,
            "architecture": type(self.hf).__name__,
            "revision": getattr(self.hf.config, "_commit_hash", None),
            "weights_sha256": self.weights_sha256,
            "tokenizer_sha256": None if self.tokenizer is None else tokenizer_sha256(self.tokenizer),
            "tokenisation": tokenisation(self.tokenizer),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "device_map": placed(self.hf),
            "quantisation": quantisation(self.hf),
            "adapters": adapters(self.hf),
            "compiled_and_run_uncompiled": list(self.compiled),
            "trust_remote_code": remote_code(self.hf, self.hf.config, self.tokenizer, ran=self.code),
            "attention_implementation": self.attention_implementation,
            "attention_in_chunks": self.attention_in_chunks,
            "key_value_heads": self._key_value_heads(),
            "recurrent_layers": kinds_of_layers(self.hf),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        }

    def _key_value_heads(self) -> list[int] | None:
        try:
            return self.num_kv_heads
        except NotReproducible:
            # Nothing of such a model's attention can be captured.
            return None

    def positions(self, num_tokens: int) -> dict[str, Any]:
        """What a trace of a prompt of this length records of positions (see `probe.hooks.loading.positions`)."""
        return positions(self.hf, num_tokens)

    def card(self) -> dict[str, Any]:
        """What the model's folder says of how the model was made (its `specimen.json`); empty where it says nothing."""
        return specimen_card(self.hf)

    @contextmanager
    def calls(
        self,
        on_call: OnCall | None,
        on_residual: OnResidual | None = None,
        on_recurrence: OnRecurrence | None = None,
    ) -> Iterator[None]:
        """Within the block every forward hands out its attention calls, and leaves its logits as they are.

        `on_call(sample, call)` is called for each layer and each sample of the batch, padding sliced off, queries as
        the interventions of the block made them. A forward that no phase was declared for (any but `prefill` and
        `step`) on an empty cache gives two calls a layer: the prompt but its last token as prefill, the last as
        decode; on a cache that holds tokens all are decode (a prompt that comes in several forwards of the caller's
        own cannot be told from decoding: use `prefill`). `on_residual(layer, sample, hidden)` gets the output of each
        decoder layer, `on_recurrence(sample, recurrence)` the tokens of each recurrent layer.

        A reader is given every query of every layer once and in order, also where `prefill` had to put a chunk through
        again; so it needs no way back. Where a reader itself runs out of device memory (`torch.OutOfMemoryError`),
        what it had added up is unknown, and `DeviceTooSmall` is raised. `call.log_sum_exp` is there where the model's
        own attention operator handed it over and it is provably the call's (see `log_sum_exp_of`); None elsewhere.

        Every call is verified: a few rows are recomputed, the mask is compared (`probe.hooks.attention.verification`).
        Raises `NotReproducible` naming the model, the layer and the reason.
        """
        self.attention_layers  # noqa: B018 (refuses, before anything runs, a model that cannot be watched)
        with ExitStack() as stack:
            stack.enter_context(attached(self.hf, _handing_out(on_call)))
            if on_residual is not None:
                modules = [layer.module() for layer in self.attention_layers.values()]
                modules += [layer.module() for layer in self.recurrent_layers.values()]
                stack.enter_context(watched_residuals(self.hf, [each for each in modules if each], on_residual))
            if on_recurrence is not None:
                stack.enter_context(watched_recurrences(self.hf, on_recurrence))
            yield

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        chunk_tokens: int = 2048,
        on_logits: OnLogits | None = None,
        cache: Cache = "device",
        whole: int | None = None,
    ) -> decoding_state:
        """Put a prompt through in chunks and return the state that `step` continues; no tokens give an empty state.

        All its tokens are of phase `prefill`, so a prompt's last token is best left to `step`, as in Wu et al. (2024).
        `whole` is the length of the prompt with what is left of it to `step`: models whose rotary frequencies depend on
        the length (LongRoPE, dynamic NTK scaling) rotate every chunk as they would the whole (see `rotated_as_whole`).
        `on_logits(start, logits [token vocabulary])` is called for at most 256 tokens at a time; no more are ever held.
        Plain causal layers of a model with SDPA attention need no mask in a chunk (see `chunk_attention`); for other
        layers transformers makes one of chunk × cached tokens.

        A chunk that the device has no room for is halved, and every query, residual and logit is still handed out
        once and in order (see `probe.hooks.sequence.prefill`); raises `DeviceTooSmall` where that does not help.

        With `cache="offload"` keys and values lie in the host's memory, and on the device one layer at a time: slower,
        and bit by bit the same. Raises `NotReproducible` for a model that does not go on from its cache where it should
        (see `check_continuation`).
        """
        state = decoding.empty_state(self.hf, cache)
        state.prompt_tokens = (len(tokens) if whole is None else whole) or None
        with self.attention_in_parts(), rotated_as_whole(self.hf, len(tokens) if whole is None else whole):
            prefill(self.hf, state, tokens, chunk_tokens=chunk_tokens, on_logits=on_logits)
        return state

    def attention_in_parts(self) -> AbstractContextManager[None]:
        """Return the block within which chunks of a prompt need no mask, also where nobody watches."""
        try:
            self.attention_layers  # noqa: B018 (raises for a model that cannot be watched, which then has its masks)
        except NotReproducible:
            return nullcontext()
        return attached(self.hf, tap())

    def step(
        self, state: decoding_state, tokens: Sequence[int], *, phase: Literal["prefill", "decode"] = "decode"
    ) -> Float[Tensor, "token vocabulary"]:
        """Put tokens through after those of `state`, which moves on; return the logits at each of them."""
        return decoding.advance(self.hf, state, tokens, phase=phase, all_logits=True)

    def mark(self, state: decoding_state) -> decoding_mark:
        """Remember where `state` stands, to go back there; copies recurrent states alone (of `num_bytes`)."""
        return decoding.mark(self.hf, state)

    def rollback(self, state: decoding_state, to: decoding_mark) -> None:
        """Take `state` back to where `mark` was taken; what follows is bit-identical to never having gone on."""
        decoding.rollback(state, to)


class _handing_out(tap):
    part = None

    def __init__(self, on_call: OnCall | None) -> None:
        self.on_call = on_call
        self.wants_calls = on_call is not None

    def call(self, sample: int, call: Call) -> None:
        if self.on_call is not None:
            self.on_call(sample, call)


def load(
    name_or_model: str | os.PathLike[str] | PreTrainedModel | HuggingFaceModel,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attention_implementation: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | int | Mapping[str, Any] | None = None,
) -> HuggingFaceModel:
    """Load a model by specimen name, folder or hub id, or wrap a model object that is already there.

    A name may also be the folder or hub id of a peft adapter, which brings its base. A loaded model keeps the dtype
    that it is stored in, goes to CUDA where there is one, and has no gradients. With `device_map` accelerate spreads
    it: `auto`, or part by part (`{"model.layers.0": "cuda:0", …, "lm_head": "disk"}`). A given object is never copied
    and stays as it is, except that it is put into evaluation mode: a peft model runs with the adapters that are active
    (or merged), one that was compiled runs uncompiled while the toolkit runs it, and the provenance says so. Raises
    `NotAvailable` naming the model and what was tried, `UsageError` for a device that is not there, a dtype that no
    model runs in, and options that a given object cannot take.
    """
    if isinstance(name_or_model, HuggingFaceModel):
        return name_or_model
    if isinstance(name_or_model, os.PathLike):
        name_or_model = os.fspath(name_or_model)
    check_tokenizer(tokenizer)
    place = None if device is None else found_device(device)
    if not isinstance(name_or_model, str):
        return _wrapped(name_or_model, tokenizer, place, dtype, revision, attention_implementation, device_map)
    options: dict[str, Any] = {"dtype": "auto" if dtype is None else found_dtype(dtype)}
    if revision is not None:
        options["revision"] = revision
    if attention_implementation is not None:
        options["attn_implementation"] = attention_implementation
    if device_map is not None:
        options["device_map"] = chosen_map(device_map, place)
    found = find_model(name_or_model, trust_remote_code=trust_remote_code, **options)
    named(found.hf, name_or_model)
    found.hf.requires_grad_(False)
    found.hf.eval()
    check_loaded(found.hf)
    check_parts(found.hf, device_map)
    if device_map is None:
        move(found.hf, place or torch.device("cuda" if torch.cuda.is_available() else "cpu"), asked=place is not None)
    # It imports what derives from the class above.
    from probe.hooks.loading.model_class import model_class

    kind = model_class(found.hf)
    own, error = (found.tokenizer, found.tokenizer_error) if tokenizer is None else (tokenizer, None)
    loaded = kind(found.hf, own, name=name_or_model, tokenizer_error=error)
    loaded.code = code_of(name_or_model) if trust_remote_code else ()
    return loaded


def _wrapped(
    model: Any, tokenizer: Any, device: Any, dtype: Any, revision: str | None, attention_implementation: str | None,
    device_map: Any,
) -> HuggingFaceModel:  # fmt: skip
    hf = transformers_model(model)
    compiled = compiled_parts(model)
    for option, value in (
        ("dtype", dtype),
        ("revision", revision),
        ("attention_implementation", attention_implementation),
        ("device_map", device_map),
    ):
        if value is not None:
            raise UsageError(f"{option} cannot be chosen for a model object that is already there")
    hf.eval()
    check_loaded(hf)
    if device is not None:
        move(hf, device, asked=True)
    from probe.hooks.loading.model_class import model_class

    return model_class(hf)(hf, tokenizer, compiled=compiled)
