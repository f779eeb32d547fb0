"""Tiny random recurrent and hybrid models, and their recurrences from weights and inputs, step by step in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, silu, softplus
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LINEAR_FIRST = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
_DELTA = {
    **_LINEAR_FIRST,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 5,
}
_MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_MAMBA = {"state_size": 5, "intermediate_size": 64, "time_step_rank": 3}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 6,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
}

MODELS: dict[str, dict[str, Any]] = {
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": {"state_size": 6, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 5,
        "mamba_dt_rank": 3,
    },
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2,
        "mamba_d_state": 5,
        "mamba_dt_rank": 3,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "initializer_range": 0.1,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8,
        "mamba_d_state": 6,
        "mamba_ngroups": 2,
        "mamba_headdim": 8,
        "chunk_size": 16,
        "num_key_value_heads": 4,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
        "initializer_range": 0.1,
    },
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "head_dim": 8, "ssm_in_multiplier": 1.5},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 6,
        "n_groups": 2,
        "chunk_size": 16,
        "head_dim": 8,
    },
    "granitemoehybrid": {
        **_MAMBA2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
    },
    "qwen3_next": {**_DELTA, **_MOE, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": _DELTA,
    "olmo_hybrid": {**_DELTA, "linear_num_key_heads": 4},
    "kimi_linear": {
        **_MOE,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "minimax": {**_LINEAR_FIRST, "block_size": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 16},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_blocks": 2, "num_heads": 2, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "zaya": {"num_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "moe_intermediate_size": 16},
}
"""Arguments of the configuration class of each `model_type`."""


def make(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model with its weights drawn from seed 0, and biases, decays and the like that are not all alike."""
    config = AutoConfig.for_model(kind, **{**_SIZES, **MODELS.get(kind, {}), **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "recurrent_param")):
                parameter.normal_()
            elif "time_" in name:
                parameter.uniform_(-1, 1)
    return model.eval()


def tokens(length: int, seed: int = 0) -> list[int]:
    """Random token ids, special ones left out."""
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Steps:
    """What one layer's recurrence is made of, token by token, everything repeated to heads × state × channel."""

    query: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor
    decay: Tensor
    delta: bool = False
    read_gate: Tensor | None = None
    bonus: Tensor | None = None

    def run(self) -> tuple[Tensor, Tensor]:
        """States and what is read, each token's."""
        state, states, read = torch.zeros_like(self.decay[0]), [], []
        for t in range(len(self.value)):
            before = state
            state = state * self.decay[t]
            new = self.value[t]
            if self.delta:
                new = new - (self.key[t][:, :, None] * state).sum(1)
            state = state + self.key[t][:, :, None] * (self.gate[t] * new)[:, None, :]
            states.append(state)
            y = (self.query[t][:, :, None] * (state if self.bonus is None else before)).sum(1)
            if self.bonus is not None:
                y = y * self.read_gate[t] + self.bonus[t] * self.value[t]
            read.append(y)
        return torch.stack(states), torch.stack(read)

    def attention(self) -> Tensor:
        """∂y_t / ∂v_j for all t and j by automatic differentiation, [head, query, key, channel]."""
        value = self.value.clone().requires_grad_()
        _, read = dataclasses.replace(self, value=value).run()
        rows = [torch.autograd.grad(y.sum(), value, retain_graph=True, allow_unused=True)[0] for y in read]
        return torch.stack(rows).permute(2, 0, 1, 3)


def _wide(*tensors: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    return [tensor.expand(shape) for tensor in tensors]


def _grouped(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _convolved(x: Tensor, convolution: nn.Conv1d) -> Tensor:
    """Causal convolution over tokens and SiLU, [token, channel]."""
    width = convolution.weight.shape[-1]
    padded = nn.functional.pad(x.T, (width - 1, 0))
    return silu(conv1d(padded, convolution.weight, convolution.bias, groups=len(padded))).T


def _mamba2(mixer: Any, hidden: Tensor) -> Steps:
    hidden = hidden * getattr(mixer, "ssm_in_multiplier", 1.0)
    projected = mixer.in_proj(hidden) * getattr(mixer, "mup_vector", torch.ones(1))
    inner, heads, states, groups = mixer.intermediate_size, mixer.num_heads, mixer.ssm_state_size, mixer.n_groups
    _, convolved, step = projected.reshape(len(hidden), -1).split([inner, inner + 2 * groups * states, heads], -1)
    x, b, c = _convolved(convolved, mixer.conv1d).split([inner, groups * states, groups * states], -1)
    step = softplus(step + mixer.dt_bias).clamp(*mixer.time_step_limit)
    shape = len(hidden), heads, states, inner // heads
    (decay,) = _wide((step * -mixer.A_log.exp()).exp()[:, :, None, None], shape=shape)
    key, query = (_grouped(each.reshape(len(hidden), groups, states), heads) for each in (b, c))
    value = x.reshape(len(hidden), heads, -1)
    return Steps(query, key, value, step[:, :, None].expand_as(value), decay)


def _mamba(mixer: Any, hidden: Tensor) -> Steps:
    inner = mixer.intermediate_size
    x = _convolved(mixer.in_proj(hidden)[:, :inner], mixer.conv1d)
    step, b, c = mixer.x_proj(x).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
    if hasattr(mixer, "b_layernorm"):
        step, b, c = mixer.dt_layernorm(step), mixer.b_layernorm(b), mixer.c_layernorm(c)
    step = softplus(mixer.dt_proj(step))
    decay = (step[:, :, None] * -mixer.A_log.exp()).exp().transpose(1, 2)
    return Steps(c[:, None], b[:, None], x[:, None], step[:, None], decay[:, None])


def _zamba(mixer: Any, hidden: Tensor) -> Steps:
    heads, width, states = mixer.n_mamba_heads, mixer.mamba_head_dim, mixer.ssm_state_size
    # Channels of the convolution's input and of the gate take turns, block by block.
    projected = mixer.in_proj(hidden).T.reshape(-1, 2, len(hidden))[:, 0].T
    x = _convolved(projected, mixer.conv1d).reshape(len(hidden), heads, width)
    parameters = torch.einsum("hrw,thw->thr", mixer.x_proj_weight, x)
    step, b, c = parameters.split([mixer.time_step_rank, states, states], -1)
    step = softplus(torch.einsum("hwr,thr->thw", mixer.dt_proj_weight, step) + mixer.dt_proj_bias)
    decay = (step[..., None] * -mixer.A_log.exp()).exp().transpose(-1, -2)
    return Steps(c, b, x, step, decay)


def _delta(mixer: Any, hidden: Tensor) -> Steps:
    k_heads, heads, width, v_width = mixer.num_k_heads, mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim
    length, ratio = len(hidden), heads // k_heads
    if hasattr(mixer, "in_proj_qkvz"):
        mixed = mixer.in_proj_qkvz(hidden).reshape(length, k_heads, -1)
        q, k, v, _ = mixed.split([width, width, ratio * v_width, ratio * v_width], -1)
        b, a = mixer.in_proj_ba(hidden).reshape(length, k_heads, -1).split([ratio, ratio], -1)
        mixed = torch.cat([each.reshape(length, -1) for each in (q, k, v)], -1)
    else:
        mixed, b, a = mixer.in_proj_qkv(hidden), mixer.in_proj_b(hidden), mixer.in_proj_a(hidden)
    q, k, v = _convolved(mixed, mixer.conv1d).split([k_heads * width, k_heads * width, heads * v_width], -1)
    q, k = (_grouped(each.reshape(length, k_heads, width), heads) for each in (q, k))
    q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
    decay = (-mixer.A_log.exp() * softplus(a.reshape(length, heads) + mixer.dt_bias)).exp()
    (decay,) = _wide(decay[:, :, None, None], shape=(length, heads, width, v_width))
    value = v.reshape(length, heads, v_width)
    gate = b.reshape(length, heads).sigmoid()[:, :, None].expand_as(value)
    return Steps(q * width**-0.5, k, value, gate, decay, delta=True)


def _kimi(mixer: Any, hidden: Tensor) -> Steps:
    length, heads, width = len(hidden), mixer.num_heads, mixer.head_dim
    mixed = torch.cat([mixer.q_proj(hidden), mixer.k_proj(hidden), mixer.v_proj(hidden)], -1)
    q, k, v = _convolved(mixed, mixer.conv1d).reshape(length, 3, heads, width).unbind(1)
    q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
    decay = mixer.forget_gate(hidden[None])[0].exp()[..., None].expand(-1, -1, -1, width)
    gate = mixer.b_proj(hidden).sigmoid()[..., None].expand_as(v)
    return Steps(q * width**-0.5, k, v, gate, decay, delta=True)


def _lightning(mixer: Any, hidden: Tensor) -> Steps:
    length, heads, width = len(hidden), mixer.num_attention_heads, mixer.head_dim
    mixed = silu(mixer.qkv_proj(hidden)).reshape(length, heads, 3 * width)
    q, k, v = mixed.split(width, -1)
    decay = (-mixer.slope_rate).exp().expand(length, heads, width, width)
    return Steps(q, k, v, torch.ones_like(v), decay)


def _rg_lru(unit: Any, hidden: Tensor) -> Steps:
    length, heads, width = len(hidden), unit.num_attention_heads, unit.block_width
    x = hidden.reshape(length, heads, width)
    gates = [
        torch.stack([x[:, h] @ weight[h] + bias[h] for h in range(heads)], 1).sigmoid()
        for weight, bias in (
            (unit.input_gate_weight, unit.input_gate_bias),
            (unit.recurrent_gate_weight, unit.recurrent_gate_bias),
        )
    ]
    a = (-8 * gates[1] * softplus(unit.recurrent_param).reshape(heads, width)).exp()
    a[0] = 0
    ones = torch.ones(length, heads, 1, dtype=x.dtype)
    return Steps(ones, ones, x, (1 - a**2).sqrt() * gates[0], a[:, :, None])


def _rwkv(mixer: Any, hidden: Tensor) -> Steps:
    shifted = torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])
    key, value = (
        projection(hidden * mix[0] + shifted * (1 - mix[0]))
        for projection, mix in ((mixer.key, mixer.time_mix_key), (mixer.value, mixer.time_mix_value))
    )
    fade, first = -mixer.time_decay.exp(), mixer.time_first
    denominator, decays, gates, own = torch.zeros_like(key[0]), [], [], []
    for k in key:
        own.append((k + first).exp() / (denominator + (k + first).exp()))
        left = denominator * fade.exp()
        denominator = left + k.exp()
        decays.append(left / denominator)
        gates.append(k.exp() / denominator)
    decay, gate, bonus = (torch.stack(each)[:, None] for each in (decays, gates, own))
    ones = torch.ones(len(hidden), 1, 1, dtype=hidden.dtype)
    return Steps(ones, ones, value[:, None], gate, decay[:, :, None], read_gate=1 - bonus, bonus=bonus)


def _mlstm(backend: Any, given: dict[str, Tensor]) -> Steps:
    q, k, v, opened, forget = (
        given[name][0].double().transpose(0, 1) for name in ("query", "key", "value", "igate", "fgate")
    )
    forget, largest, decays, gates, divisors = forget.sigmoid(), torch.zeros_like(opened[0]), [], [], []
    # What it stands for: everything times exp(−m) of the running maximum.
    norm = torch.zeros_like(k[0])
    for t in range(len(q)):
        before, largest = largest, torch.maximum(forget[t].log() + largest, opened[t])
        decays.append(forget[t] * (before - largest).exp())
        gates.append((opened[t] - largest).exp())
        norm = decays[-1][:, None] * norm + gates[-1][:, None] * k[t]
        reads = (q[t] * norm).sum(-1) * q.shape[-1] ** -0.5
        divisors.append(torch.maximum(reads.abs(), (-largest).exp()) + backend.config.eps)
    (decay,) = _wide(torch.stack(decays)[..., None, None], shape=(*k.shape, v.shape[-1]))
    gate = torch.stack(gates)[..., None].expand_as(v)
    return Steps(q * q.shape[-1] ** -0.5 / torch.stack(divisors)[..., None], k, v, gate, decay)


FAMILIES: dict[str, tuple[str, Callable[[Any, Tensor], Steps]]] = {
    **dict.fromkeys(["mamba", "falcon_mamba"], ("mixer", _mamba)),
    "jamba": ("mamba", _mamba),
    "zamba": ("mamba", _zamba),
    "mamba2": ("mixer", _mamba2),
    "nemotron_h": ("mixer", _mamba2),
    **dict.fromkeys(["zamba2", "bamba", "falcon_h1", "granitemoehybrid"], ("mamba", _mamba2)),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text"], ("linear_attn", _delta)),
    "kimi_linear": ("self_attn", _kimi),
    "minimax": ("self_attn", _lightning),
    "recurrent_gemma": ("rg_lru", _rg_lru),
    "rwkv": ("attention", _rwkv),
    "xlstm": ("mlstm_backend", _mlstm),
}
"""By model: what the first recurrent module is called, and its recurrence."""


def first_steps(model: PreTrainedModel, ids: list[int]) -> Steps:
    """The recurrence of the model's first recurrent layer over a prompt, from its input and its weights, in float64."""
    name, family = FAMILIES[model.config.model_type]
    module = next(each for path, each in model.named_modules() if path.endswith(f".{name}"))
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("hidden_states", args[0] if args else kwargs)),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    with torch.no_grad():
        given = seen[0] if isinstance(seen[0], dict) else seen[0][0].double()
        return family(copy.deepcopy(module).double(), given)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", name="make")
def _make() -> Callable[..., PreTrainedModel]:
    return make


@pytest.fixture(scope="session", name="tokens")
def _tokens() -> Callable[..., list[int]]:
    return tokens


@pytest.fixture(scope="session", name="first_steps")
def _first_steps() -> Callable[..., Steps]:
    return first_steps
