"""Measure the specimen `prose`, and write the figures into `specimen.json`.

    python casebooks/specimens/prose/measure.py FOLDER --seed 0 [--json FILE] [--checkpoints FOLDER]

Losses are in nats a token, of held-out text; attention is the model's own eager attention. With the checkpoints that
`train.py --checkpoints` keeps it writes `emergence.json`: what the model could do on the way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAINING = runpy.run_path(str(Path(__file__).with_name("train.py")))
TRAINED_LENGTH, VOCABULARY = TRAINING["TRAINED_LENGTH"], TRAINING["VOCABULARY"]

# Training draws from 0, 1, 2 and 3.
WORKLOAD_SEED = 1000
ROWS = 64
"""Rows of held-out text; of repeated strings and passages a quarter as many."""
PASSAGE = 128
"""Tokens of a string or a passage that stands twice."""
SINK_TOKENS, SINK_LEAST = 64, 0.3
"""Tokens and threshold of the sink metric of Gu et al. 2024 (arXiv 2410.10781)."""
COPIES = 0.1
"""Threshold of a retrieval head, from Wu et al. 2024 (arXiv 2404.15574)."""
POSITIONS = (1, 16, 64, 128, 256, 384, 512)
"""Bounds of the classes of a token's position."""
BOUNDS = {
    "held_out_loss": (3.6, 4.05),
    "string_first_copy": (7.0, 16.0),
    "string_second_copy": (0.0, 0.8),
    "largest_copying_score": (0.8, 1.0),
    "copying_heads": (2, 16),
    "largest_first_token_attention": (0.05, 0.35),
    "added_by_shuffling_the_first_half": (0.05, 0.25),
    "passage_first_copy": (3.6, 4.1),
    "passage_second_copy": (1.8, 2.9),
    "largest_residual_over_median": (3.0, 30.0),
}
"""What another machine's training must meet."""


@torch.inference_mode()
def losses(model: Any, tokens: Tensor) -> Tensor:
    """Return the loss of each token but the first (row, token), in nats."""
    parts = []
    for rows in tokens.split(8):
        logits = model(rows).logits[:, :-1]
        parts.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none"))
    return torch.cat(parts)


@torch.inference_mode()
def attention(model: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """Return each layer's attention (row, head, query, key)."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = model(tokens, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return tuple(found)


def held_out_rows(text: Tensor, rows: int, seed: int, length: int = TRAINED_LENGTH) -> Tensor:
    """Return rows of `<s>` and a stretch of held-out text (row, token)."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensor = TRAINING["prose_rows"](generator, text, rows, length)
    return found


def twice(parts: Tensor) -> Tensor:
    """Return `<s>` and each part twice (row, token)."""
    return torch.cat([torch.zeros(len(parts), 1, dtype=torch.long), parts, parts], 1)


@torch.inference_mode()
def copying_scores(model: Any, strings: Tensor) -> Tensor:
    """Return each head's strict copying score on strings that stand twice (layer, head).

    The share of the second copy's tokens at which the head's largest attention is on the same token of the first copy
    and the model's likeliest token is that one: the criterion of Wu et al. 2024, teacher forced instead of decoded.
    """
    tokens = twice(strings)
    length = strings.shape[1]
    # The row that predicts the second copy's token i stands one before it.
    rows = torch.arange(length, 2 * length)
    right = model(tokens).logits[:, rows].argmax(-1) == strings
    found = []
    for layer in attention(model, tokens):
        looks = layer[:, :, rows].argmax(-1) == torch.arange(1, length + 1)
        found.append((looks & right[:, None]).float().mean((0, 2)))
    return torch.stack(found)


def sinks(model: Any, text: Tensor) -> Tensor:
    """Return the first token's importance for each head (layer, head): its mean attention over 64 queries."""
    rows = held_out_rows(text, ROWS, WORKLOAD_SEED + 2, SINK_TOKENS)
    return torch.stack([layer[..., 0].mean((0, 2)) for layer in attention(model, rows)])


def added_by_shuffling(model: Any, rows: Tensor, each: Tensor) -> float:
    """Return what the second half of the rows loses where the first half's tokens but `<s>` are shuffled."""
    generator, half = torch.Generator().manual_seed(WORKLOAD_SEED + 5), TRAINED_LENGTH // 2
    shuffled = rows.clone()
    for row in shuffled:
        row[1:half] = row[1:half][torch.randperm(half - 1, generator=generator)]
    return float((losses(model, shuffled) - each)[:, half:].mean())


def short_figures(model: Any, text: Tensor) -> dict[str, Any]:
    """Return what is measured of each checkpoint."""
    rows = held_out_rows(text, ROWS, WORKLOAD_SEED + 4)
    held_out = losses(model, rows)
    generator = torch.Generator().manual_seed(WORKLOAD_SEED + 1)
    strings = torch.randint(2, VOCABULARY, (ROWS // 4, PASSAGE), generator=generator)
    each = losses(model, twice(strings)).mean(0)
    copies, first = copying_scores(model, strings), sinks(model, text)
    return {
        "held_out_loss": round(float(held_out.mean()), 4),
        "added_by_shuffling_the_first_half": round(added_by_shuffling(model, rows, held_out), 4),
        "string_first_copy": round(float(each[:PASSAGE].mean()), 4),
        "string_second_copy": round(float(each[PASSAGE:].mean()), 4),
        "largest_copying_score": round(float(copies.max()), 4),
        "copying_heads": int((copies > COPIES).sum()),
        "largest_first_token_attention": round(float(first.max()), 4),
        "sink_heads": int((first > SINK_LEAST).sum()),
    }


@torch.inference_mode()
def largest_over_median(model: Any, text: Tensor) -> float:
    """Return the residual stream's largest absolute value over its median, after the layer where that is largest."""
    rows = held_out_rows(text, ROWS // 4, WORKLOAD_SEED + 3)
    streams = model(rows, output_hidden_states=True).hidden_states[1:-1]
    return max(float(stream.abs().max() / stream.abs().median()) for stream in streams)


def figures(model: Any, text: Tensor) -> dict[str, Any]:
    """Return everything that the card states, by name."""
    found = short_figures(model, text)
    rows = held_out_rows(text, ROWS, WORKLOAD_SEED + 4)
    each = losses(model, rows)
    for low, high in itertools.pairwise(POSITIONS):
        found[f"loss_at_{low}_to_{high - 1}"] = round(float(each[:, low - 1 : high - 1].mean()), 4)
    passages = losses(model, twice(rows[: ROWS // 4, 1 : PASSAGE + 1])).mean(0)
    found["passage_first_copy"] = round(float(passages[:PASSAGE].mean()), 4)
    found["passage_second_copy"] = round(float(passages[PASSAGE:].mean()), 4)
    found["largest_residual_over_median"] = round(largest_over_median(model, text), 1)
    return found


def emergence(model: Any, text: Tensor, folder: Path) -> list[dict[str, Any]]:
    """Return what the model could do at each checkpoint, in the order of training; its weights are then the last's."""
    paths = sorted(folder.glob("string-*.safetensors")) + sorted(folder.glob("prose-*.safetensors"))
    found = []
    for path in paths:
        model.model.load_state_dict({name: each.float() for name, each in load_file(path).items()})
        on, step = path.stem.split("-")
        found.append(
            {"trained_on": {"string": "strings", "prose": "prose"}[on], "step": int(step), **short_figures(model, text)}
        )
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures that a training is judged by")
    parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints to measure as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    _, held_out = TRAINING["split"](TRAINING["paragraphs"]())
    text = torch.tensor(tokenizer("\n\n".join(held_out), add_special_tokens=False)["input_ids"])
    measured = figures(model, text)
    card = {
        "name": "prose",
        "trained_length": TRAINED_LENGTH,
        "phenomena": ["context use", "induction"],
        "engineered": True,
        "seed": arguments.seed,
        "workload_seed": WORKLOAD_SEED,
        "figures": measured,
        "bounds": {name: list(ends) for name, ends in BOUNDS.items()},
    }
    (arguments.folder / "specimen.json").write_text(json.dumps(card, indent=2) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=1))
    if arguments.checkpoints:
        rows = emergence(model, text, arguments.checkpoints)
        (arguments.folder / "emergence.json").write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows:
            print(json.dumps(row))


if __name__ == "__main__":
    main()
