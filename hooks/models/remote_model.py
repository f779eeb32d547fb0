"""A model that runs on NDIF: its queries, keys and values come back, and are reduced here."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.errors import NotAvailable, NotReproducible, ProbeError, UsageError
from probe.hooks.attention.interface import loaded_attention
from probe.hooks.attention.layers import attention_layer
from probe.hooks.attention.switch import watchers
from probe.hooks.attention.verification import recomputed
from probe.hooks.loading.positions import training_length
from probe.hooks.models.huggingface import HuggingFaceModel, OnCall, OnResidual
from probe.hooks.models.remote_forward import attention_paths, attention_shapes, layer_inputs, remote_forward
from probe.hooks.sequence.prefill import OnLogits
from probe.kernels.call import Call

REMOTE_GIGABYTES = 2.0
"""What one request may bring back unless more is asked for."""

_log = logging.getLogger("probe")


@dataclass(eq=False)
class remote_state:
    """Where a sequence stands: its tokens, and the keys and values that came back."""

    tokens: Int[Tensor, "token"]
    """Every token that went in."""
    keys: dict[int, Float[Tensor, "kv_head token channel"]] = field(default_factory=dict)
    """Keys by layer."""
    values: dict[int, Float[Tensor, "kv_head token value_channel"]] = field(default_factory=dict)
    """Values by layer."""

    @property
    def num_tokens(self) -> int:
        """Tokens that went in."""
        return len(self.tokens)


class RemoteModel(HuggingFaceModel):
    """A model that nnsight runs on NDIF, and which has no weights here.

    Every `prefill` and `step` sends the whole sequence, since nothing is kept there; what comes back is what its
    attention was given for the new tokens (their queries, keys and values after rotation), a few rows of its output to
    verify them with, and the logits. Interventions would have to be sent, and are refused by name.
    """

    backend = "nnsight"
    is_remote = True

    def __init__(
        self,
        envoy: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        remote: bool | str = True,
        remote_gigabytes: float = REMOTE_GIGABYTES,
    ) -> None:
        """Wrap nnsight's model; with `remote=False` the same requests run here, with `"local"` packed and unpacked."""
        super().__init__(envoy._module, tokenizer or getattr(envoy, "tokenizer", None), name=name)
        self.envoy = envoy
        """nnsight's model."""
        self.remote = remote
        """Where requests run."""
        self.remote_gigabytes = remote_gigabytes
        """What one request may bring back."""
        self._on_call: OnCall | None = None
        self._on_residual: OnResidual | None = None
        if remote is True:
            _log.warning("%s runs on NDIF: every prompt leaves this machine", self.name)

    @property
    def device(self) -> torch.device:
        """Where what comes back is reduced."""
        return torch.device("cpu")

    @property
    def attention_implementation(self) -> str:
        """The attention that the model's configuration names here; what runs it there is not known."""
        return f"{loaded_attention(self.hf)}, as configured here" if self.remote else loaded_attention(self.hf)

    @property
    def attention_in_chunks(self) -> str:
        """A prompt goes in one request."""
        return "the whole sequence in every request"

    @cached_property
    def attention_layers(self) -> dict[int, attention_layer]:
        """The layers that attend, by index, from a run of nnsight's that computes nothing."""
        modules = dict(self.hf.named_modules())
        return {
            layer: attention_layer(weakref.ref(modules[self._paths[layer]]), *shape)
            for layer, shape in attention_shapes(self.envoy, self._paths).items()
        }

    @cached_property
    def recurrent_layers(self) -> dict[int, Any]:
        """None: recurrences are not read from afar."""
        return {}

    @cached_property
    def _paths(self) -> dict[int, str]:
        return attention_paths(self.hf)

    @property
    def weights_sha256(self) -> str:
        """That it is not known."""
        return "not known: the weights are on NDIF"

    def positions(self, num_tokens: int) -> dict[str, Any]:
        """What is known of positions; without weights here, which would have to be looked at, the training length."""
        if not next(self.hf.parameters()).is_meta:
            return super().positions(num_tokens)
        return {"num_tokens": num_tokens, "layers": {}, "rotary": {}, "training_length": training_length(self.hf, {})}

    def provenance(self) -> dict[str, Any]:
        """What the model is, and that its prompts left the machine."""
        facts = super().provenance()
        facts["remote"] = "NDIF: the prompts left this machine" if self.remote is True else str(self.remote)
        facts["versions"]["nnsight"] = version("nnsight")
        return facts

    def bytes_back(self, num_tokens: int, *, logits: bool = True, residuals: bool = False) -> int:
        """How much a request for so many new tokens brings back, in bytes."""
        config = self.hf.config.get_text_config()
        size = torch.finfo(self.dtype).bits // 8
        per_token = sum(
            each.num_heads * each.head_dim + each.num_kv_heads * (each.head_dim + each.value_dim)
            for each in self.attention_layers.values()
        )
        if residuals:
            per_token += config.hidden_size * len(self.attention_layers)
        return size * (num_tokens * per_token + (num_tokens if logits else 1) * self.vocab_size)

    @contextmanager
    def calls(
        self,
        on_call: OnCall | None,
        on_residual: OnResidual | None = None,
        on_recurrence: Callable[..., None] | None = None,
    ) -> Iterator[None]:
        """Within the block every `prefill` and `step` hands out its calls, verified at a few rows, as elsewhere.

        Raises `NotReproducible` for recurrences, which are not read from afar.
        """
        if on_recurrence is not None:
            raise NotReproducible(f"{self.name}: recurrences are not read from a model on NDIF")
        before = self._on_call, self._on_residual
        self._on_call, self._on_residual = on_call, on_residual
        try:
            yield
        finally:
            self._on_call, self._on_residual = before

    def prefill(
        self, tokens: Sequence[int], *, chunk_tokens: int = 2048, on_logits: OnLogits | None = None,
        cache: Literal["device", "offload"] = "device", whole: int | None = None,
    ) -> Any:  # fmt: skip
        """Put a prompt through in one request; chunks and caches are the server's business and mean nothing here.

        Where a later request rotates the prompt's keys otherwise (dynamic NTK scaling), `step` refuses it by name.
        """
        state = remote_state(torch.zeros(0, dtype=torch.long))
        if len(tokens):
            logits = self._put_through(state, tokens, "prefill", logits=on_logits is not None)
            if on_logits is not None:
                for start in range(0, len(logits), 256):
                    on_logits(start, logits[start : start + 256])
        return state

    def attention_in_parts(self) -> AbstractContextManager[None]:
        """Nothing: no chunk is put through here."""
        return nullcontext()

    def step(
        self, state: Any, tokens: Sequence[int], *, phase: Literal["prefill", "decode"] = "decode"
    ) -> Float[Tensor, "token vocabulary"]:
        """Put tokens through after those of `state`, by sending all of them; return the logits at each."""
        return self._put_through(state, tokens, phase, logits=True)

    def mark(self, state: Any) -> Any:
        """Remember where `state` stands."""
        return int(state.num_tokens)

    def rollback(self, state: Any, to: Any) -> None:
        """Take `state` back to where `mark` was taken."""
        state.tokens = state.tokens[:to]
        for held in (state.keys, state.values):
            held.update({layer: each[:, :to] for layer, each in held.items()})

    def _put_through(self, state: remote_state, tokens: Sequence[int], phase: Any, *, logits: bool) -> Tensor:
        if not len(tokens):
            raise UsageError("no tokens were given to go through the model")
        if watchers(self.hf):
            raise NotReproducible(f"{self.name}: interventions are not sent to NDIF; run the model here for them")
        whole, first = torch.cat([state.tokens, torch.tensor(list(tokens))]), state.num_tokens
        self._check_size(len(tokens), logits)
        try:
            inputs, scores = remote_forward(
                self.envoy, whole, first, self._paths, remote=self.remote,
                residuals=self._on_residual is not None, logits=logits,
            )  # fmt: skip
        except ProbeError:
            raise
        except Exception as error:
            if not self.remote:
                raise
            # What is raised in between may quote the request: neither the prompt nor the key is passed on.
            raise NotAvailable(
                f"{self.name}: the request to NDIF failed with {type(error).__name__}{_likely_cause(self.name)}"
            ) from None
        for layer, given in inputs.items():
            self._hand_out(state, layer, given, whole, phase)
        state.tokens = whole
        return scores

    def _check_size(self, num_new: int, logits: bool) -> None:
        size = self.bytes_back(num_new, logits=logits, residuals=self._on_residual is not None) / 1e9
        if size > self.remote_gigabytes:
            raise UsageError(
                f"{self.name}: {num_new} tokens would bring {size:.2g} GB of queries, keys, values and logits back "
                f"from NDIF, and {self.remote_gigabytes:g} GB are allowed; ask for more with "
                "probe.load(…, remote=True, remote_gigabytes=…), or for a shorter prompt"
            )
        if self.remote is True:
            _log.info("%s: %d tokens go to NDIF; %.2f GB come back", self.name, num_new, size)

    def _hand_out(self, state: remote_state, layer: int, given: layer_inputs, whole: Tensor, phase: Any) -> None:
        for held, new in ((state.keys, given.key), (state.values, given.value)):
            held[layer] = torch.cat([held[layer], new], dim=1) if layer in held else new
        options = given.options
        if options.get("position_bias") is not None:
            raise NotReproducible(f"{self.name}, layer {layer}: a position bias is added to its logits")
        sink, window = options.get("s_aux"), options.get("sliding_window")
        call = Call(
            layer=layer,
            query=given.query,
            key=state.keys[layer],
            value=state.values[layer],
            scale=float(options.get("scaling", given.query.shape[-1] ** -0.5)),
            query_start=state.num_tokens,
            causal=bool(options.get("is_causal", True)),
            window=int(window) if window else None,
            softcap=options.get("softcap"),
            sink_logit=None if sink is None else sink.detach().cpu().reshape(-1),
            phase=phase,
            tokens=whole,
        )
        output = given.output.new_zeros(call.num_queries, *given.output.shape[1:])
        output[given.rows] = given.output
        off = recomputed(call, output)
        if off.output > off.output_allowed:
            raise NotReproducible(
                f"{self.name}, layer {layer}: the attention output cannot be reproduced from what its attention was "
                f"given: largest difference {off.output:.3g}, where {off.output_allowed:.3g} is allowed"
            )
        if self._on_call is not None:
            self._on_call(0, call)
        if self._on_residual is not None and given.residual is not None:
            self._on_residual(layer, 0, given.residual)


def _likely_cause(name: str) -> str:
    """What a user can mend, told from this machine alone: an error of nnsight's may not be quoted."""
    import nnsight

    if Path(name).is_dir():
        return "; NDIF knows a model by its hub id, and this is a folder"
    return "" if nnsight.CONFIG.API.APIKEY else "; no key is set: put yours into NDIF_API_KEY"
