"""Measure the specimen `flip-flop` and its recurrent control, and write the figures into `specimen.json`.

    python casebooks/specimens/flip-flop/measure.py FOLDER --seed 0

Errors are those of the largest of the two bits' logits at each read; attention is the model's own eager attention.
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
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

TRAINING = runpy.run_path(str(Path(__file__).with_name("train.py")))
READ, WRITE, ZERO = (TRAINING[name] for name in ("READ", "WRITE", "ZERO"))
TRAINED_LENGTH, flip_flop_rows, recurrent = (
    TRAINING[name] for name in ("TRAINED_LENGTH", "flip_flop_rows", "recurrent")
)

# Not a seed of training, whose rows are drawn from 0, 1, 2.
WORKLOAD_SEED = 1000
CASES = ((0.8, 256, 512), (0.9, 256, 512), (0.98, 256, 1024), (0.1, 256, 512), (0.8, 512, 256), (0.98, 512, 512))
"""Share ignored, length in tokens, rows."""
BOUNDS = {
    "errors of the Llama on FFL(0.8), 256 tokens": (0.0, 0.001),
    "errors of the Llama on FFL(0.9), 256 tokens": (0.0, 0.02),
    "errors of the Llama on FFL(0.98), 256 tokens": (0.03, 0.3),
    "share of these whose last write is 32 pairs away or more": (0.9, 1.0),
    "errors of the Llama on FFL(0.98), 512 tokens": (0.05, 0.5),
    "errors of the LSTM, all languages and lengths": (0.0, 0.0005),
}
"""What another machine's training must give: what the seeds on the card gave, with room on both sides."""
AGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bounds of the age of the last write, in pairs."""


@torch.inference_mode()
def wrong_reads(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pair (row, pair) whether it is a read, whether it is read wrongly, and the last write's age."""
    wrong = []
    for rows in tokens.split(16):
        output = model(rows)
        logits = output if isinstance(output, Tensor) else output.logits
        said = logits[:, 0::2, ZERO : ZERO + 2].argmax(-1) + ZERO
        wrong.append(said != rows[:, 1::2])
    instruction = tokens[:, 0::2]
    place = torch.arange(instruction.shape[1])
    age = place - torch.where(instruction == WRITE, place, 0).cummax(1).values
    is_read = instruction == READ
    return is_read, torch.cat(wrong) & is_read, age


def errors(model: nn.Module, ignored: float, length: int, rows: int) -> dict[str, Any]:
    """Return the reads and those read wrongly, all and by the age of the last write."""
    tokens, _ = flip_flop_rows(torch.Generator().manual_seed(WORKLOAD_SEED), rows, length, ignored)
    is_read, wrong, age = wrong_reads(model, tokens)
    by_age = {
        f"{low}-{high - 1}": [int((wrong & held).sum()), int((is_read & held).sum())]
        for low, high in itertools.pairwise(AGES)
        if (held := (age >= low) & (age < high)).any()
    }
    return {
        "ignored": ignored,
        "length": length,
        "wrong": int(wrong.sum()),
        "reads": int(is_read.sum()),
        "by_age": by_age,
    }


@torch.inference_mode()
def attention_at_the_last_read(model: Any, ignored: float) -> list[dict[str, Any]]:
    """Return each head's attention from the last read to the last write's bit and to earlier writes' bits.

    Mean over 256 texts, apart for those that are read rightly and wrongly.
    """
    tokens, _ = flip_flop_rows(torch.Generator().manual_seed(WORKLOAD_SEED + 1), 256, TRAINED_LENGTH, ignored)
    pairs = torch.arange(TRAINED_LENGTH // 2)
    is_write = tokens[:, 0::2] == WRITE
    last = torch.where(is_write, pairs, 0).max(1).values
    model.set_attn_implementation("eager")
    parts = [model(rows, output_attentions=True) for rows in tokens.split(32)]
    said = torch.cat([part.logits[:, -2, ZERO : ZERO + 2].argmax(-1) + ZERO for part in parts])
    right = said == tokens[:, -1]
    found = []
    for layer in range(model.config.num_hidden_layers):
        # The row that reads: the last instruction. Bits stand at odd places.
        rows = torch.cat([part.attentions[layer][:, :, -2, 1::2] for part in parts])
        to_last = rows.gather(2, last[:, None, None].expand(-1, rows.shape[1], 1))[..., 0]
        to_writes = (rows * is_write[:, None, : rows.shape[2]]).sum(-1)
        for head in range(rows.shape[1]):
            num_right = int(right.sum())
            each: dict[str, Any] = {"layer": layer, "head": head, "right": num_right, "wrong": len(right) - num_right}
            for name, kept in (("right", right), ("wrong", ~right)):
                if kept.any():
                    each[f"to_last_write_when_{name}"] = round(float(to_last[kept, head].mean()), 4)
                    each[f"to_earlier_writes_when_{name}"] = round(float((to_writes - to_last)[kept, head].mean()), 4)
            found.append(each)
    return found


def named(figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that a training is judged by, by name."""
    of = {(each["ignored"], each["length"]): each for each in figures["llama"]}
    sparse = of[0.98, 256]["by_age"]
    old = sum(wrong for age, (wrong, _) in sparse.items() if int(age.split("-")[0]) >= 32)
    every = [sum(each[what] for each in figures["lstm"]) for what in ("wrong", "reads")]
    return {
        **{
            f"errors of the Llama on FFL({p:g}), {length} tokens": each["wrong"] / each["reads"]
            for (p, length), each in of.items()
        },
        "share of these whose last write is 32 pairs away or more": old / max(1, of[0.98, 256]["wrong"]),
        "errors of the LSTM, all languages and lengths": every[0] / every[1],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures that a training is judged by")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    llama = AutoModelForCausalLM.from_pretrained(arguments.folder).eval()
    control = recurrent()
    control.load_state_dict(load_file(arguments.folder / "lstm.safetensors"))
    figures: dict[str, Any] = {
        "llama": [errors(llama, *case) for case in CASES],
        "lstm": [errors(control.eval(), *case) for case in CASES],
        "attention_at_the_last_read": {"0.98": attention_at_the_last_read(llama, 0.98)},
    }
    card = {
        "name": "flip-flop",
        "trained_length": TRAINED_LENGTH,
        "phenomena": ["flip-flop glitches"],
        "engineered": False,
        "seed": arguments.seed,
        "workload_seed": WORKLOAD_SEED,
        "figures": figures,
        "bounds": BOUNDS,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(named(figures), indent=2) + "\n")
    (arguments.folder / "specimen.json").write_text(json.dumps(card, indent=2) + "\n")
    for kind in ("llama", "lstm"):
        print(kind, [(each["ignored"], each["length"], each["wrong"], each["reads"]) for each in figures[kind]])


if __name__ == "__main__":
    main()
