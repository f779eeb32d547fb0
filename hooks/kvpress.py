"""Run a press of NVIDIA's kvpress, where that package is installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.eviction import FOREVER, evicted
from probe.hooks.attention.interface import text_decoder
from probe.hooks.attention.last_tokens import LastTokens
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.sample import Sample

_LastToken = Literal["evicted", "full"]


@dataclass(frozen=True)
class kvpress(ChangeOfCalls):
    """Keep what a press of kvpress scores highest: `kvpress("SnapKVPress", {"compression_ratio": 0.5})(model)`.

    The press, made with `arguments`, scores each key of the prompt in each key-value head, and the
    `int(length · (1 − compression_ratio))` best, at least one, are what later queries find. What it does not keep is
    hidden from them rather than deleted, so that positions stay what they are and a trace shows what was kept. kvpress'
    own hooks are not entered: they ask of transformers what not every version gives. Presses that score keys
    (`ScorerPress`, its `compress` unchanged) can be run; others are refused, and so are presses that need attention
    weights. kvpress is not among this toolkit's dependencies, since its releases bind transformers to versions of
    their own; the version that ran is the one that is installed.

    A press sees the queries' hidden states as the module had them: interventions on queries or keys that were entered
    before are in its keys, not in queries that it computes from hidden states.
    """

    press: str
    """The class' name in kvpress, such as `SnapKVPress`."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What it is made with; what is not given has kvpress' own default, a compression ratio of 0 among them."""
    last_token: _LastToken = "evicted"
    """Whether the prompt's last token, from whose logits the answer's first token comes, reads the cache `evicted` or,
    as in kvpress, `full`. The press sees it either way, and it sees itself."""

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_token not in get_args(_LastToken):
            raise UsageError(f"kvpress: last_token is {self.last_token!r}; expected evicted, full")
        if self.phase == "prefill":
            raise UsageError("kvpress: phase 'prefill' leaves nothing: presses act when the prompt has ended")
        if not isinstance(self.arguments, Mapping):
            raise UsageError(f"kvpress: arguments are names with values, not {self.arguments!r}")
        object.__setattr__(self, "arguments", dict(self.arguments))

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"cache"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        _ = model, sample
        self._made()

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        return self._change(self._made(), _inputs(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        chosen, press, inputs = self._chosen(model), self._made(), _inputs(model)
        with torch.no_grad():
            press.post_init_from_model(model)
        with inputs.watched(), self._acting(model, self._change(press, inputs), chosen):
            yield

    def _made(self) -> Any:
        """Return the press; raises `UsageError` where there is none of that name, or none that can be run here."""
        if importlib.util.find_spec("kvpress") is None:
            raise UsageError(f"kvpress: press {self.press!r} needs the package kvpress, which is not installed")
        package = _package()
        scorer: Any = package.ScorerPress
        kind: Any = getattr(package, self.press, None)
        scoring = [
            name
            for name, each in sorted(vars(package).items())
            if isinstance(each, type)
            and issubclass(each, scorer)
            and getattr(each, "compress", None) is scorer.compress
            and each is not scorer
        ]
        if self.press not in scoring:
            raise UsageError(f"kvpress: press {self.press!r} does not score keys; these do: {', '.join(scoring)}")
        try:
            return kind(**self.arguments)
        except (TypeError, AssertionError, ValueError) as error:
            raise UsageError(f"kvpress: arguments {self.arguments} do not make a {self.press}: {error}") from error

    def _change(self, press: Any, inputs: _inputs) -> Change:
        last = LastTokens(None, "kvpress")
        kept: dict[tuple[int, int], Int[Tensor, "kv_head key"] | None] = {}

        def change(here: site, sample: int, call: Call) -> Call:
            if not call.causal:
                return call
            if call.key_start or call.window is not None:
                raise UsageError(
                    f"kvpress: layer {call.layer} sees a window of {call.window} tokens, in which keys are dropped "
                    "already; name the layers that see all"
                )
            given = inputs.of_call(here, sample, call)
            if call.phase == "prefill":
                last.take(sample, call, given)
                return call
            where, before = (call.layer, sample), last.at_the_end(sample, call, given)
            if before is not None:
                whole = torch.cat([before, given[:1]])
                kept[where] = self._kept(press, here, call, *inputs.apart(call.layer, whole))
            until = kept[where]
            if until is None:
                return call
            later = torch.nn.functional.pad(until, (0, call.num_keys - until.shape[1]), value=FOREVER)
            return dataclasses.replace(call, changes=(*call.changes, evicted(later)), log_sum_exp=None)

        return change

    def _kept(
        self, press: Any, here: site, call: Call, hidden: Tensor, embeddings: tuple[Tensor, Tensor] | None
    ) -> Int[Tensor, "kv_head key"] | None:
        """Return from which query on each key of the prompt is gone; None where all stay."""
        end = hidden.shape[1]
        number = max(1, int(end * (1 - press.compression_ratio)))
        if end <= number or not press.compression_ratio:
            return None
        key, value = call.key[None, :, :end], call.value[None, :, :end]
        given = {"hidden_states": hidden, "position_embeddings": embeddings, "past_key_values": None}
        try:
            with torch.no_grad():
                score = press.score(here.module, hidden, key, value, None, given)[0]
        except (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise UsageError(
                f"kvpress: press {self.press!r} cannot score the keys of layer {call.layer} of "
                f"{here.forward.model_name}: {type(error).__name__}: {error}"
            ) from error
        until = torch.full(score.shape, end - (self.last_token == "evicted"), dtype=torch.int32, device=score.device)
        until[:, -1] = end
        return until.scatter_(1, score.topk(number, dim=-1).indices, FOREVER)


def _package() -> Any:
    """Return kvpress; transformers' attention functions, each of which it wraps when imported, stay what they were."""
    if "kvpress" in sys.modules:
        return sys.modules["kvpress"]
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    with warnings.catch_warnings():
        # What its dependencies warn of when they are imported says nothing of the press.
        warnings.simplefilter("ignore", DeprecationWarning)
        package = importlib.import_module("kvpress")
    for name, function in before.items():
        if ALL_ATTENTION_FUNCTIONS[name] is not function:
            # What it put over the registered one goes; where one was put over before, that comes back.
            del ALL_ATTENTION_FUNCTIONS[name]
            if ALL_ATTENTION_FUNCTIONS.get(name) is not function:
                ALL_ATTENTION_FUNCTIONS[name] = function
    return package


class _inputs:
    """What the attention modules of a model are given in the forward that is running."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.modules = {layer: found.module() for layer, found in attention_parts(model).get("self", {}).items()}
        self.rotary = getattr(text_decoder(model), "rotary_emb", None)
        self.given: dict[int, tuple[Tensor, tuple[Tensor, Tensor] | None]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block inputs are remembered, and modules have the `rotary_emb` that some presses ask them for."""
        with ExitStack() as stack:
            for layer, module in self.modules.items():
                assert module is not None
                hook = module.register_forward_pre_hook(partial(self._remember, layer), with_kwargs=True)
                stack.callback(hook.remove)
                if self.rotary is not None and not hasattr(module, "rotary_emb"):
                    module.rotary_emb = self.rotary
                    stack.callback(delattr, module, "rotary_emb")
            stack.callback(self.given.clear)
            yield

    def of_call(self, here: site, sample: int, call: Call) -> Float[Tensor, "query channel"]:
        """Return a call's hidden states, and the cosines and sines of its positions, side by side."""
        hidden, embeddings = self.given[call.layer]
        stop = here.forward.queries_of(sample)[1]
        ends = here.forward.keys_of(sample)[1] - here.forward.keys_of(sample)[0]
        first = stop - (ends - call.query_start)
        rows = slice(first, first + call.num_queries)
        parts = [hidden[sample, rows]]
        for each in embeddings or ():
            parts.append(each[sample if len(each) > 1 else 0, rows].to(hidden))
        return torch.cat(parts, -1)

    def apart(
        self, layer: int, vectors: Float[Tensor, "token channel"]
    ) -> tuple[Float[Tensor, "1 token channel"], tuple[Tensor, Tensor] | None]:
        """Return hidden states and embeddings as a module has them, of what `of_call` put side by side."""
        hidden, embeddings = self.given[layer]
        if embeddings is None:
            return vectors[None], None
        width, of_each = hidden.shape[-1], embeddings[0].shape[-1]
        own, cosine, sine = vectors[None].split([width, of_each, of_each], -1)
        return own, (cosine, sine)

    def _remember(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Any = kwargs.get("hidden_states", args[0] if args else None)
        self.given[layer] = hidden, kwargs.get("position_embeddings")
