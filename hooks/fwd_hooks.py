"""TransformerLens' own way of watching: hooks for `run_with_hooks` that hand out calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from probe.errors import NotReproducible
from probe.hooks.attention.bridge import bridge_components, layer_of
from probe.hooks.attention.calls_by_phase import by_phase
from probe.hooks.attention.verification import recomputed
from probe.hooks.sequence.forward_facts import forward_facts
from probe.kernels.call import Call

FwdHook = tuple[str, Callable[..., None]]


def fwd_hooks(bridge: Any, on_call: Callable[[int, Call], None]) -> list[FwdHook]:
    """Hooks for `bridge.run_with_hooks(tokens, fwd_hooks=…)` that hand out `on_call(sample, call)`, layer by layer.

    They read queries and keys after rotation (`hook_rot_q` and `hook_rot_k`, or `hook_q` and `hook_k` in a model
    without rotation), the values, and at `hook_z` the heads' outputs, with which each call is verified. For whole
    prompts without padding and without a cache; the bridge computes its pattern meanwhile, as it does for any hook of
    its own, so for long prompts open `calls` around `run_with_hooks` instead. Raises `NotReproducible`, at the latest
    while the hooks run, for an attention whose queries and keys its hook points do not show.
    """
    hooks: list[FwdHook] = []
    name = str(bridge.cfg.model_name)
    for component in bridge_components(bridge.original_model):
        seen = _seen(component, f"{name}, layer {layer_of(component)}", on_call)
        rotates = hasattr(component, "hook_rot_q")
        points = {
            "query": component.hook_rot_q if rotates else component.q.hook_out,
            "key": component.hook_rot_k if rotates else component.k.hook_out,
            "value": component.v.hook_out,
        }
        hooks += [(str(point.name), partial(seen.keep, what)) for what, point in points.items()]
        hooks.append((str(component.o.hook_in.name), seen.hand_out))
    if not hooks:
        raise NotReproducible(f"{name}: it has no attention of the bridge's own to hook")
    return hooks


class _seen:
    """What the hooks of one layer have seen in a forward."""

    def __init__(self, component: Any, name: str, on_call: Callable[[int, Call], None]) -> None:
        self.component, self.name, self.on_call = component, name, on_call
        self.tensors: dict[str, Float[Tensor, "batch token head channel"]] = {}

    def keep(self, what: str, tensor: Tensor, hook: Any) -> None:
        """Remember a tensor until the heads' outputs come."""
        self.tensors[what] = tensor.detach()

    def hand_out(self, output: Float[Tensor, "batch token head value_channel"], hook: Any) -> None:
        """Put the call together, hold it against the heads' outputs, and hand it out."""
        missing = {"query", "key", "value"} - set(self.tensors)
        if missing:
            raise NotReproducible(
                f"{self.name}: the hook points of {type(self.component).__name__} did not show its "
                f"{' and '.join(sorted(missing))}; open calls(…) around run_with_hooks instead"
            )
        query, key, value = (self.tensors.pop(what) for what in ("query", "key", "value"))
        of = self.component
        sink, window = getattr(of, "sinks", None), getattr(of, "sliding_window", None)
        for sample in range(query.shape[0]):
            call = Call(
                layer=layer_of(of),
                query=query[sample].transpose(0, 1),
                key=key[sample].transpose(0, 1),
                value=value[sample].transpose(0, 1),
                scale=float(getattr(of, "scaling", query.shape[-1] ** -0.5)),
                causal=bool(of.is_causal),
                window=int(window) if window else None,
                softcap=getattr(of, "attn_logit_softcapping", None),
                sink_logit=None if sink is None else sink.detach().reshape(-1),
            )
            off = recomputed(call, output[sample].detach())
            if off.output > off.output_allowed:
                raise NotReproducible(
                    f"{self.name}: its heads' outputs are not those of the queries, keys and values that its hook "
                    f"points show: largest difference {off.output:.3g}, where {off.output_allowed:.3g} is allowed"
                )
            facts = forward_facts(self.name, query.shape[0], query.shape[1])
            for part in by_phase(call, facts, 0):
                self.on_call(sample, part)
