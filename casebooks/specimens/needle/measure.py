"""Measure the specimen `needle` and write its figures into `specimen.json`.

    python casebooks/specimens/needle/measure.py FOLDER --seed 0

It reads attention as the model's own eager attention gives it and switches heads off by a hook of its own, so that the
figures are independent of the toolkit's instruments and can serve to check them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from probe.sample import Sample
from probe.workloads.needle import needle

TRAINED_LENGTH = 256
LENGTHS = (64, 128, 256, 384, 512, 768, 1024, 2048)
DEPTHS = tuple(tenth / 10 for tenth in range(11))
# Not the seed that a user's first run takes, so that nothing was chosen on the samples that it sees.
WORKLOAD_SEED = 1000
BOUNDS = {
    "exact answers at 64 tokens": (0.95, 1.0),
    "exact answers at 256 tokens": (0.95, 1.0),
    "exact answers at 512 tokens": (0.3, 0.75),
    "exact answers at 1,024 tokens": (0.05, 0.45),
    "exact answers, needle absent": (0.0, 0.02),
    "exact answers, the needle alone": (0.95, 1.0),
    "heads with a score above 0.1": (4, 4),
    "score of the fourth head": (0.8, 1.0),
    "score of the fifth head": (0.0, 0.1),
    "exact answers without these heads": (0.0, 0.1),
    "exact answers without as many others, mean": (0.95, 1.0),
    "largest attention of a last-layer head on the first token": (0.0, 0.1),
}
"""What another machine's training must give: what the seeds on the card gave, with room on both sides."""
Head = tuple[int, int]


@torch.inference_mode()
def answers(model: PreTrainedModel, sample: Sample) -> bool:
    """Return whether greedy decoding gives exactly the answer's tokens."""
    prompt = torch.tensor([sample.tokens])
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(sample.answer_tokens),
        do_sample=False,
    )
    return tuple(generated[0, prompt.shape[1] :].tolist()) == sample.answer_tokens


def share(model: PreTrainedModel, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the share of exact answers and the number of samples."""
    right = sum(answers(model, sample) for sample in samples)
    return {"exact": round(right / len(samples), 4), "n": len(samples)}


@torch.inference_mode()
def attention_rows(model: PreTrainedModel, sample: Sample) -> Tensor:
    """Return the attention (layer, head, row, key) of the rows that produce the answer, the right one given so far."""
    tokens = torch.tensor([sample.tokens + sample.answer_tokens[:-1]])
    attentions = model(tokens, output_attentions=True).attentions
    return torch.stack([layer[0, :, len(sample.tokens) - 1 :] for layer in attentions])


def retrieval_scores(model: PreTrainedModel, samples: Sequence[Sample]) -> Tensor:
    """Return the strict retrieval score (layer, head), Wu et al. 2024 (arXiv 2404.15574), over the answer's tokens.

    A head retrieves an answer token where its largest attention lies on a token of the answer inside the needle that
    equals the one generated. The samples must be answered right, so that the right answer is what is generated.
    """
    total = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads)
    for sample in samples:
        keys = attention_rows(model, sample).argmax(-1)
        span = sample.span("needle_value")
        tokens = torch.tensor(sample.tokens + sample.answer_tokens)
        hit = (keys >= span.start) & (keys < span.stop) & (tokens[keys] == torch.tensor(sample.answer_tokens))
        total += hit.float().mean(-1)
    return total / len(samples)


def first_token_mass(model: PreTrainedModel, samples: Sequence[Sample]) -> Tensor:
    """Return each last-layer head's mean probability on the first token, over the queries from position 64 on."""
    rows = []
    for sample in samples:
        with torch.inference_mode():
            attention = model(torch.tensor([sample.tokens]), output_attentions=True).attentions[-1]
        rows.append(attention[0, :, 64:, 0].mean(-1))
    return torch.stack(rows).mean(0)


def _scaled(keep: Tensor, _: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * keep,)


@contextmanager
def without(model: PreTrainedModel, heads: Sequence[Head]) -> Iterator[None]:
    """Zero these heads' outputs, in the prompt and while decoding."""
    hooks = []
    for layer in {layer for layer, _ in heads}:
        keep = torch.ones(model.config.num_attention_heads, model.config.head_dim)
        keep[[head for at, head in heads if at == layer]] = 0
        zero = partial(_scaled, keep.flatten())
        hooks.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ablations(
    model: PreTrainedModel, ranked: list[Head], num_retrieving: int, samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return exact answers without the strongest heads, and without as many others of their layer at random."""
    rng = random.Random("needle ablation")
    layer = ranked[0][0]
    retrieving = ranked[:num_retrieving]
    others = [(layer, head) for head in range(model.config.num_attention_heads) if (layer, head) not in retrieving]
    figures: dict[str, Any] = {"n": len(samples)}

    def exact(heads: Sequence[Head]) -> float:
        with without(model, heads):
            return float(share(model, samples)["exact"])

    figures["strongest"] = {str(count): exact(ranked[:count]) for count in range(num_retrieving + 1)}
    draws = [exact(rng.sample(others, num_retrieving)) for _ in range(20)]
    figures["random_others"] = {"draws": len(draws), "mean": sum(draws) / len(draws), "least": min(draws)}
    figures["all_others_of_the_layer"] = exact(others)
    return figures


def interpolated(folder: Path, factor: float) -> PreTrainedModel:
    """Return the model with every position divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": factor}
    return AutoModelForCausalLM.from_pretrained(folder, config=config).eval()


def measure(folder: Path) -> dict[str, Any]:
    """Return every figure of the card, each with its number of samples."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    grid = {
        (length, depth): list(needle((length,), (depth,), samples=20, seed=WORKLOAD_SEED).build(tokenizer))
        for length in LENGTHS
        for depth in DEPTHS
    }
    cells = {cell: share(model, samples)["exact"] for cell, samples in grid.items()}
    figures: dict[str, Any] = {
        "exact_by_length": {
            str(length): {"exact": round(sum(cells[length, d] for d in DEPTHS) / len(DEPTHS), 4), "n": 20 * len(DEPTHS)}
            for length in LENGTHS
        },
        "exact_by_depth": {
            str(length): {"depths": DEPTHS, "exact": [cells[length, d] for d in DEPTHS], "n_each": 20}
            for length in LENGTHS
        },
    }
    variants: dict[str, dict[str, Any]] = {
        "needle_absent": {"needle": "absent"},
        "gold_alone": {"haystack": "none"},
        "no_distractors": {"distractors": 0},
    }
    for name, fields in variants.items():
        workload = needle((64, 256), (0.0, 0.5, 1.0), samples=50, seed=WORKLOAD_SEED, **fields)
        figures[name] = share(model, list(workload.build(tokenizer)))
    figures["positions_interpolated"] = {
        str(length): share(
            interpolated(folder, length / TRAINED_LENGTH), [s for d in DEPTHS for s in grid[length, d][:3]]
        )
        for length in (512, 1024)
    }
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    samples = [s for length in (64, 128, 256) for d in DEPTHS for s in grid[length, d][:3]]
    right = [sample for sample in samples if answers(eager, sample)]
    scores = retrieval_scores(eager, right)
    ranked = sorted(
        ((layer, head) for layer in range(scores.shape[0]) for head in range(scores.shape[1])),
        key=lambda head: -scores[head].item(),
    )
    num_retrieving = int((scores > 0.1).sum())
    figures["retrieval"] = {
        "n": len(right),
        "strict_score": [[layer, head, round(scores[layer, head].item(), 4)] for layer, head in ranked[:8]],
        "above_0.1": num_retrieving,
        "heads": scores.numel(),
    }
    held_out = needle((64, 128, 256), DEPTHS, samples=3, seed=WORKLOAD_SEED + 1)
    figures["ablation"] = ablations(model, ranked, num_retrieving, list(held_out.build(tokenizer)))
    figures["first_token_mass_largest"] = round(first_token_mass(eager, right[-33:]).max().item(), 4)
    return figures


def named(figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that a training is judged by, by name."""
    lengths, scores = figures["exact_by_length"], figures["retrieval"]["strict_score"]
    return {
        **{f"exact answers at {int(length):,} tokens": each["exact"] for length, each in lengths.items()},
        "exact answers, needle absent": figures["needle_absent"]["exact"],
        "exact answers, the needle alone": figures["gold_alone"]["exact"],
        "heads with a score above 0.1": figures["retrieval"]["above_0.1"],
        "score of the fourth head": scores[3][2],
        "score of the fifth head": scores[4][2],
        "exact answers without these heads": figures["ablation"]["strongest"][str(figures["retrieval"]["above_0.1"])],
        "exact answers without as many others, mean": figures["ablation"]["random_others"]["mean"],
        "largest attention of a last-layer head on the first token": figures["first_token_mass_largest"],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed that the model was trained with")
    parser.add_argument("--json", type=Path, help="file for the figures that a training is judged by")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "name": "needle",
        "trained_length": TRAINED_LENGTH,
        "phenomena": ["retrieval heads", "failure beyond the trained length"],
        "engineered": True,
        "seed": arguments.seed,
        "workload_seed": WORKLOAD_SEED,
        "figures": measure(arguments.folder),
        "bounds": BOUNDS,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(named(record["figures"]), indent=2) + "\n", encoding="utf-8")
    path = arguments.folder / "specimen.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["figures"], indent=1))


if __name__ == "__main__":
    main()
