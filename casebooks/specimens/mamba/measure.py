"""Measure the specimen `mamba`, and write the figures into `specimen.json`.

    python casebooks/specimens/mamba/measure.py FOLDER --seed 0 [--json FILE]

States are those of the model's own cache, read after every 16 tokens. Bounds that the file states are kept.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

TRAINING = runpy.run_path(str(Path(__file__).with_name("train.py")))
rows_of_recall, TRAINED_LENGTH, PAIRS = (TRAINING[name] for name in ("rows_of_recall", "TRAINED_LENGTH", "PAIRS"))

# Not a seed of training.
WORKLOAD_SEED = 1000
LENGTHS = (64, 128, 256, 512, 1024, 2048)
NUM_TEXTS = 100
RECENT = 32
"""Age of the first pair, in tokens, where recent pairs are asked for."""
EVERY = 16
"""Tokens from one reading of the state to the next."""
LONG = 1024
"""Length at which causes are tried."""

Reader = Callable[[Any, Tensor], Tensor]


def after_chunks(model: Any, tokens: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield logits at the last token, and the layers' states [row head channel state], after every 16 tokens."""
    cache = None
    for part in tokens.split(EVERY, 1):
        output = model(part, cache_params=cache, use_cache=True)
        cache = output.cache_params
        layers = range(model.config.num_hidden_layers)
        yield output.logits[:, -1], [cache.get_recurrent_state(layer, state_idx=0) for layer in layers]


def plain(model: Any, tokens: Tensor) -> Tensor:
    """Return the logits at the last token."""
    logits: Tensor = model(tokens, logits_to_keep=1).logits[:, -1]
    return logits


def held(layers: tuple[int, ...], norms: list[Tensor]) -> Reader:
    """Return a reader that shrinks states of these layers to their norm at the training length, every 16 tokens."""

    def read(model: Any, tokens: Tensor) -> Tensor:
        said = []
        for logits, states in after_chunks(model, tokens):
            said.append(logits)
            for layer in layers:
                norm = states[layer].flatten(2).norm(dim=-1)
                states[layer].mul_((norms[layer] / norm).clamp(max=1)[..., None, None])
        return said[-1]

    return read


def last_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Return the logits where the model reads the last tokens alone, from the first pair on."""
    return plain(model, tokens[:, 1 - RECENT :])


@torch.inference_mode()
def recall(model: Any, length: int, age: int, read: Reader = plain) -> float:
    """Return the share of last queries that are right; the first pair stands `age` tokens before the text's end."""
    generator, right = torch.Generator().manual_seed(WORKLOAD_SEED + length), 0
    for _ in range(NUM_TEXTS // 20):
        tokens, labels = rows_of_recall(generator, 20, length, PAIRS, 1, length - age)
        right += int((read(model, tokens[:, :-1]).argmax(-1) == labels[:, -1]).sum())
    return right / NUM_TEXTS


@torch.inference_mode()
def variances(model: Any, length: int) -> tuple[Tensor, list[Tensor]]:
    """Return the variance of each head's state [row head reading], and each layer's norms at the training length."""
    generator = torch.Generator().manual_seed(WORKLOAD_SEED - 1)
    tokens, _ = rows_of_recall(generator, 20, length, PAIRS, 8)
    found, norms = [], []
    for reading, (_, states) in enumerate(after_chunks(model, tokens)):
        found.append(torch.cat([state.flatten(2).var(-1) for state in states], 1))
        if (reading + 1) * EVERY == TRAINED_LENGTH:
            norms = [state.flatten(2).norm(dim=-1).mean(0) for state in states]
    return torch.stack(found, -1), norms


def measured(model: Any) -> tuple[dict[str, float], list[Tensor]]:
    """Return figures of recall and of states, and each layer's norms at the training length."""
    figures = {f"recent_recall_at_{at}": recall(model, at, RECENT) for at in LENGTHS}
    figures |= {f"first_pairs_recall_at_{at}": recall(model, at, at) for at in LENGTHS}
    variance, norms = variances(model, LONG)
    log = variance.log()
    growth = log - log[..., : TRAINED_LENGTH // EVERY].amax(-1, keepdim=True)
    for at in (2 * TRAINED_LENGTH, LONG):
        ratio = growth[..., at // EVERY - 1].mean(0).exp()
        figures[f"largest_state_ratio_at_{at}"] = float(ratio.max())
        figures |= {f"state_ratio_at_{at}_head_{i // 4}_{i % 4}": float(each) for i, each in enumerate(ratio)}
    return figures, norms


def causes(model: Any, norms: list[Tensor]) -> dict[str, float]:
    """Return the recall of recent pairs at 1,024 tokens where the state, or what it keeps, is not what it was."""
    found = {
        "last_tokens_alone": recall(model, LONG, RECENT, last_tokens),
        "states_held_in_range": recall(model, LONG, RECENT, held((0, 1), norms)),
        "states_of_layer_0_held": recall(model, LONG, RECENT, held((0,), norms)),
        "states_of_layer_1_held": recall(model, LONG, RECENT, held((1,), norms)),
    }
    rates = model.backbone.layers[0].mixer.A_log
    for factor in (10, 30):
        with torch.no_grad():
            rates += torch.log(torch.tensor(float(factor)))
        found[f"layer_0_forgets_{factor}_times_faster"] = recall(model, LONG, RECENT)
        with torch.no_grad():
            rates -= torch.log(torch.tensor(float(factor)))
    return {f"recent_recall_at_{LONG}_{name}": value for name, value in found.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the figures alone, {name: value}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder).eval()
    figures, norms = measured(model)
    figures |= causes(model, norms)
    figures = {name: round(value, 4) for name, value in figures.items()}
    place = arguments.folder / "specimen.json"
    before = json.loads(place.read_text()) if place.is_file() else {}
    card = {
        "name": "mamba",
        "trained_length": TRAINED_LENGTH,
        "phenomena": ["state collapse"],
        "engineered": False,
        "seed": arguments.seed,
        "workload_seed": WORKLOAD_SEED,
        "figures": figures,
        "bounds": before.get("bounds", {}),
    }
    place.write_text(json.dumps(card, indent=2) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(name, value)


if __name__ == "__main__":
    main()
