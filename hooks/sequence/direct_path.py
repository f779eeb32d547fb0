"""How a head's output reaches the logits directly: through which projection and which norms, and nothing else."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_layer
from probe.hooks.attention.output_projection import output_projection, projection_weight
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.placement import input_device
from probe.hooks.sequence.frozen_norm import frozen_norm
from probe.hooks.sequence.residual_stream import decoder_layers

_TRIED = 5
"""Tokens that a model is tried with."""
_MOST_PARTS = 8
"""Parts of a layer, attention apart, of which every choice is tried."""

_known: weakref.WeakKeyDictionary[PreTrainedModel, direct_path] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _layer:
    width: int
    num_heads: int
    projection: weakref.ReferenceType[nn.Module]
    norm: weakref.ReferenceType[nn.Module] | None
    frozen: frozen_norm | None


@dataclass(frozen=True, eq=False)
class direct_path:
    """The way of each layer's heads to the logits: projection, norm behind it where there is one, final norm, and the
    unembedding."""

    model_name: str
    """Named in every refusal."""
    layers: Mapping[int, _layer]
    """By the index of the attention layer."""
    norm: weakref.ReferenceType[nn.Module]
    """The final norm."""
    frozen: frozen_norm
    """What it does."""
    unembedding: weakref.ReferenceType[nn.Module]
    """The linear layer that makes logits."""

    def tokens_apart(
        self, answer: Int[Tensor, "row"], others: list[Int[Tensor, "token"] | None]
    ) -> tuple[Float[Tensor, "row channel"], Float[Tensor, "row"]]:
        """Return, for each row, the unembedding of its answer less the mean over the others', and of their biases.

        None for others stands for the whole vocabulary, no others at all make the row NaN.
        """
        module: Any = self.unembedding()
        weight, bias = module.weight.detach(), module.bias
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        bias = torch.zeros(len(weight), dtype=exact) if bias is None else bias.detach()
        mean = None
        directions, offsets = [], []
        for token, other in zip(answer.tolist(), others, strict=True):
            if other is None:
                # Slice by slice: the whole in float32 can outweigh the model.
                if mean is None:
                    mean = sum(part.to(exact).sum(0) for part in weight.split(8192)) / len(weight)
                base, offset = mean, bias.to(exact).mean()
            else:
                base, offset = (
                    weight[other.to(weight.device)].to(exact).mean(0),
                    bias[other.to(bias.device)].to(exact).mean(),
                )
            directions.append(weight[token].to(exact) - base)
            offsets.append(bias[token].to(exact) - offset)
        return torch.stack(directions), torch.stack(offsets)

    def of_heads(self, layer: int, direction: Tensor, like: Tensor) -> Float[Tensor, "head row value_channel"]:
        """Return what a unit of each head's output adds along directions behind the final norm, scales left aside."""
        here = self.layers[layer]
        projection = here.projection()
        assert projection is not None
        weight = projection_weight(projection, here.width, like).to(direction.dtype)
        before = self.frozen.seen_from_before(direction)
        if here.frozen is not None:
            before = here.frozen.seen_from_before(before)
        rows = before.to(weight.device) @ weight.T
        return rows.view(len(direction), here.num_heads, -1).transpose(0, 1)

    @contextmanager
    def watched(self, scales: dict[int | None, float], last: list[Tensor]) -> Iterator[None]:
        """Within the block `scales` and `last` hold what the last token of the last forward had.

        That is each norm's scale (at `None` the final norm's), and what the final norm put out.
        """
        norms = [(None, self.norm, self.frozen), *((i, each.norm, each.frozen) for i, each in self.layers.items())]
        with ExitStack() as stack:
            for index, reference, frozen in norms:
                module = None if reference is None else reference()
                if module is None or frozen is None:
                    continue

                def keep(
                    _module: nn.Module, args: Any, output: Any, index: int | None = index, frozen: frozen_norm = frozen
                ) -> None:
                    if index is None:
                        last[:] = [output[0, -1].detach()]
                    try:
                        scales[index] = frozen.scale(args[0][0, -1], output[0, -1])
                    except NotReproducible as reason:
                        self._refuse(f"{_place(index)} is {reason}")

                stack.callback(module.register_forward_hook(keep).remove)
            yield

    def _refuse(self, reason: str) -> NoReturn:
        raise NotReproducible(f"{self.model_name}: {reason}, so what a head adds to a logit is not known")


def direct_path_of(model: PreTrainedModel, attention: Mapping[int, attention_layer]) -> direct_path:
    """Find the direct path by trying the model on a few tokens, once, and check that it is the whole of it.

    Each layer's output must be its input, what its attention put out (through a norm or not) and what other parts of it
    put out; the final norm must read the last layer's output; and the logits must be the unembedding of the final
    norm's. Raises `NotReproducible` with the model, the layer and what is otherwise: a factor on what attention adds
    (Granite), a gate between the heads and their projection, norms around the residual stream, a softcap on the logits.
    """
    if model not in _known:
        _known[model] = _found(model, attention)
    return _known[model]


class _heads(tap):
    def __init__(self) -> None:
        self.outputs: dict[int, Tensor] = {}

    def change_output(self, here: site, output: Tensor) -> Tensor:
        self.outputs[here.layer] = output.detach().clone()
        return output


@torch.no_grad()
def _found(model: PreTrainedModel, attention: Mapping[int, attention_layer]) -> direct_path:
    name = name_of(model)

    def refuse(reason: str) -> NoReturn:
        raise NotReproducible(f"{name}: {reason}, so what a head adds to a logit is not known")

    unembedding = model.get_output_embeddings()
    unembedding = getattr(unembedding, "original_component", unembedding)
    weight = getattr(unembedding, "weight", None)
    if not isinstance(unembedding, nn.Linear) or not isinstance(weight, Tensor) or weight.is_meta:
        refuse(f"its unembedding is {_kind(unembedding)}, not a linear layer with its weights at hand")
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        refuse("its unembedding is quantised")
    modules = {index: module for index, each in attention.items() if (module := each.module()) is not None}
    layers = decoder_layers(model, list(modules.values()))
    seen, heads = _tried(model, modules, heads=_heads())
    parts: dict[int, _layer] = {}
    for number, layer in enumerate(layers):
        if number and not _same(seen.inputs.get(layer), seen.outputs.get(layers[number - 1])):
            refuse(f"layer {number} does not read what the layer before put out")
        inside = {id(each) for each in layer.modules()}
        own = [index for index, module in modules.items() if id(module) in inside]
        if len(own) > 1:
            refuse(f"layer {number} attends more than once")
        index = own[0] if own else None
        module = None if index is None else modules[index]
        norm = _behind(layer, module, seen)
        if isinstance(norm, str):
            refuse(f"layer {number}: {norm}")
        if index is None or module is None:
            continue
        output = heads.outputs[index]
        width = output.shape[2] * output.shape[3]
        projection = output_projection(module, width)
        if projection is None:
            refuse(f"layer {index}: the output projection of {type(module).__name__} was not found")
        flat = output.flatten(2)
        if not _same(seen.inputs.get(projection), flat):
            refuse(f"layer {index}: something stands between its heads' outputs and their projection")
        if not _same(seen.outputs.get(projection), seen.outputs.get(module)):
            refuse(f"layer {index}: something stands behind its heads' output projection")
        frozen = None if norm is None else _frozen(norm, seen, f"layer {index}, behind its attention", refuse)
        parts[index] = _layer(
            width, output.shape[2], weakref.ref(projection), None if norm is None else weakref.ref(norm), frozen
        )
    last, end = seen.outputs.get(layers[-1]), seen.inputs.get(unembedding)
    reading = (each for each in seen.outputs if each is not unembedding and _same(seen.inputs.get(each), last))
    final = next((each for each in reading if _same(seen.outputs[each], end)), None)
    if final is None:
        refuse("no norm was found between its last layer and its unembedding")
    found = direct_path(
        name, parts, weakref.ref(final), _frozen(final, seen, "its final norm", refuse), weakref.ref(unembedding)
    )
    assert end is not None
    made = nn.functional.linear(end, weight, unembedding.bias)
    if not _same(seen.logits, made):
        refuse(f"its logits are not its unembedding's output{_why(model)}")
    return found


@dataclass(eq=False)
class _seen:
    inputs: dict[nn.Module, Tensor]
    outputs: dict[nn.Module, Tensor]
    logits: Tensor


def _tried(model: PreTrainedModel, modules: Mapping[int, nn.Module], heads: _heads) -> tuple[_seen, _heads]:
    seen = _seen({}, {}, torch.empty(0))

    def before(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and given.ndim == 3:
            seen.inputs[module] = given.detach().clone()

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple | list) and output else output
        # OPT flattens the batch inside of its layers.
        if isinstance(made, Tensor) and made.ndim == 2 and len(made) == _TRIED:
            made = made[None]
        if isinstance(made, Tensor) and made.ndim == 3:
            seen.outputs[module] = made.detach().clone()

    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(1, _TRIED + 1, device=input_device(model)).remainder(vocabulary)[None]
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(attached(model, heads, alone=True))
        seen.logits = model(input_ids=tokens, use_cache=False).logits
    return seen, heads


def _behind(layer: nn.Module, attention: nn.Module | None, seen: _seen) -> nn.Module | str | None:
    """Return the norm through which a layer adds what its attention put out, None for none; in words, why neither."""
    inside = set() if attention is None else {id(each) for each in attention.modules()}
    children = {
        module: seen.outputs[module]
        for module in layer.children()
        if module in seen.outputs
        and not (attention is not None and _holds(module, attention))
        and id(module) not in inside
    }
    start, stop = seen.inputs.get(layer), seen.outputs.get(layer)
    if start is None or stop is None or start.shape != stop.shape:
        return "its input and output are not one residual stream"
    children = {module: made for module, made in children.items() if made.shape == start.shape}
    added: list[tuple[nn.Module | None, Tensor]] = []
    if attention is not None:
        own = seen.outputs.get(attention)
        if own is None or own.shape != start.shape:
            return "its attention's output is not as wide as the residual stream"
        added = [(None, own)]
        added += [(module, made) for module, made in children.items() if _same(seen.inputs.get(module), own)]
    others = list(children.items())[:_MOST_PARTS]
    tried: list[tuple[nn.Module | None, Tensor | None]] = [*added] or [(None, None)]
    for norm, term in tried:
        for size in range(len(others) + 1):
            for chosen in itertools.combinations(others, size):
                terms = [made for module, made in chosen if module is not norm]
                if _adds_up(start, stop, term, terms):
                    return norm
    what = "its attention's output" if attention is not None else "what its parts put out"
    return f"its output is not its input and {what} as it is"


def _adds_up(start: Tensor, stop: Tensor, term: Tensor | None, others: list[Tensor]) -> bool:
    eps = torch.finfo(stop.dtype).eps
    exact = torch.float64
    sizes = [each.abs().to(exact) for each in (start, stop, *others)] + ([] if term is None else [term.abs().to(exact)])
    left = stop.to(exact) - start.to(exact)
    for each in others:
        left = left - each.to(exact)
    if term is None:
        return bool((left.abs() <= 4 * eps * sum(sizes)).all())
    own = term.to(exact)
    if bool(((left - own).abs() > 4 * eps * sum(sizes)).any()):
        return False
    # Beside a large residual stream in few digits another factor would pass by entries; over all of them it shows.
    total = float(own.square().sum())
    return total > 0 and abs(float((left * own).sum()) / total - 1) < 0.02


def _frozen(norm: nn.Module, seen: _seen, place: str, refuse: Any) -> frozen_norm:
    x, y = seen.inputs[norm], seen.outputs[norm]
    try:
        frozen = frozen_norm.of(norm, x[0, 0])
        for row in range(x.shape[1]):
            frozen.scale(x[0, row], y[0, row])
    except NotReproducible as reason:
        refuse(f"{place} stands {reason}")
    return frozen


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    eps = torch.finfo(other.dtype).eps
    # A product of matrices rounds by how its rows are taken together.
    allowed = 8 * eps * float(other.abs().amax())
    return torch.allclose(one.to(other), other, rtol=0, atol=allowed)


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return any(each is inner for each in module.modules())


def _kind(module: Any) -> str:
    return "not there" if module is None else type(module).__name__


def _place(index: int | None) -> str:
    return "its final norm" if index is None else f"the norm behind layer {index}'s attention"


def _why(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    said = [
        f"{name} = {value}"
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")
        if (value := getattr(config, name, None)) not in (None, 1, 1.0)
    ]
    return f" ({', '.join(said)})" if said else ""


__all__ = ["direct_path", "direct_path_of"]
