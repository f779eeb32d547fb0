"""Measure the specimen `position-bias` and its unbiased control, and write the figures into `specimen.json`.

    python casebooks/specimens/position-bias/measure.py FOLDER --seed 0

An answer counts if greedy decoding gives its tokens. Attention is the model's own eager attention, so that the figures
are independent of the toolkit's instruments and can serve to check them.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from probe.sample import Sample
from probe.workloads.documents import documents

TRAINING = runpy.run_path(str(Path(__file__).with_name("train.py")))
BETA, NUM_DOCUMENTS = TRAINING["BETA"], TRAINING["NUM_DOCUMENTS"]
LENGTHS = (480, 580)
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Not the seed that a user's first run takes, so that nothing was chosen on the samples that it sees.
WORKLOAD_SEED = 1000
SAMPLES, DUMMY_SAMPLES = 40, 6
BOUNDS: dict[str, tuple[float, float]] = {
    **{
        f"right where no other document fits, {kind}, {length} tokens": (0.9, 1.0)
        for kind in ("model", "control")
        for length in LENGTHS
    },
    **{f"right first or last, model, {length} tokens": (0.65, 1.0) for length in LENGTHS},
    **{
        f"{end} place less inner places, model, {length} tokens": (0.1, 0.7)
        for end in ("first", "last")
        for length in LENGTHS
    },
    **{f"attention to dummies, ends less inner places, model, {length} tokens": (0.5, 4.0) for length in LENGTHS},
}
"""What another machine's training must give: what the seed on the card gave, with room on both sides."""


def prompts(length: int, tokenizer: Any, given: Any, samples: int) -> list[Sample]:
    """Return the prompts of one length, the gold at five places."""
    workload = documents((length,), samples, WORKLOAD_SEED, depths=PLACES, num_documents=NUM_DOCUMENTS, given=given)
    return list(workload.build(tokenizer))


@torch.inference_mode()
def read(model: PreTrainedModel, sample: Sample) -> tuple[bool, float, Tensor]:
    """Return whether greedy decoding gives the answer, its loss, and each document's attention [layer head document].

    Attention is that of the row that produces the first answer token, mean over a document's tokens.
    """
    output = model(torch.tensor([sample.tokens + sample.answer_tokens]), output_attentions=True)
    row, answer = len(sample.tokens) - 1, torch.tensor(sample.answer_tokens)
    logits = output.logits[0, row:-1]
    rows = torch.stack([layer[0, :, row] for layer in output.attentions])
    spans = [span for span in sample.spans if re.fullmatch(r"document_\d+", span.name)]
    attention = torch.stack([rows[..., span.start : span.stop].mean(-1) for span in spans], -1)
    loss = torch.nn.functional.cross_entropy(logits, answer).item()
    return bool((logits.argmax(-1) == answer).all()), loss, attention


def fitting(sample: Sample) -> list[int]:
    """Return the documents that the model cannot tell apart: whose place begins with the letter that is asked for."""
    initials = re.findall(r"\(Title: (\w)", sample.text)
    asked = re.search(r"Question: who \w+ the (\w)", sample.text)
    return [at for at, initial in enumerate(initials) if asked and initial == asked[1]]


def best_possible(samples: Sequence[Sample]) -> float:
    """Return the share right of a reader that knows the training's places and reads first letters alone.

    It takes the document that was most often asked about of those that fit; of two alike, either.
    """
    edges = stats.beta(BETA, BETA).cdf([at / NUM_DOCUMENTS for at in range(NUM_DOCUMENTS + 1)])
    prior = [round(float(edges[at + 1] - edges[at]), 9) for at in range(NUM_DOCUMENTS)]
    right = 0.0
    for sample in samples:
        best = max(prior[at] for at in fitting(sample))
        alike = [at for at in fitting(sample) if prior[at] == best]
        right += (sample.facts["gold_index"] in alike) / len(alike)
    return right / len(samples)


def by_place(model: PreTrainedModel, tokenizer: Any, length: int) -> dict[str, Any]:
    """Return accuracy, loss and attention by place of the gold, and attention to dummies at every place."""
    found: dict[str, Any] = {"places": list(PLACES), "n_each": SAMPLES}
    samples = prompts(length, tokenizer, "all", SAMPLES)
    results = [(sample, *read(model, sample)) for sample in samples]
    alone = [right for sample, right, *_ in results if len(fitting(sample)) == 1]
    found["right_where_no_other_fits"] = [sum(alone), len(alone)]
    kept: dict[str, list[float]] = {"accuracy": [], "answer_loss": [], "gold_attention": [], "best_possible": []}
    for place in PLACES:
        here = [each for each in results if each[0].facts["needle_depth"] == place]
        kept["accuracy"].append(sum(right for _, right, *_ in here) / len(here))
        kept["answer_loss"].append(sum(loss for _, _, loss, _ in here) / len(here))
        golds = [float(attention.mean((0, 1))[sample.facts["gold_index"]]) for sample, _, _, attention in here]
        kept["gold_attention"].append(sum(golds) / len(golds))
        kept["best_possible"].append(best_possible([sample for sample, *_ in here]))
    dummies = [read(model, sample)[2] for sample in prompts(length, tokenizer, "all_dummies", DUMMY_SAMPLES)]
    mean = torch.stack([each.mean((0, 1)) / each.mean() for each in dummies]).mean(0)
    heads = torch.stack([each / each.mean(-1, keepdim=True) for each in dummies]).mean(0)
    found |= {name: [round(value, 5) for value in values] for name, values in kept.items()}
    found["dummy_attention"] = [round(value, 3) for value in mean.tolist()]
    found["dummy_attention_of_last_layers_heads"] = [[round(v, 2) for v in head] for head in heads[-1].tolist()]
    return found


def ends_less_middle(values: Sequence[float]) -> float:
    """Return the mean of the first and the last value less the mean of those between."""
    return (values[0] + values[-1]) / 2 - sum(values[1:-1]) / (len(values) - 2)


def named(figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that a training is judged by, by name."""
    found = {}
    for kind in ("model", "control"):
        for length in LENGTHS:
            each, where = figures[kind][str(length)], f"{kind}, {length} tokens"
            accuracy, dummies = each["accuracy"], each["dummy_attention"]
            inner = sum(accuracy[1:-1]) / 3
            found[f"right first or last, {where}"] = (accuracy[0] + accuracy[-1]) / 2
            found[f"first place less inner places, {where}"] = accuracy[0] - inner
            found[f"last place less inner places, {where}"] = accuracy[-1] - inner
            right, n = each["right_where_no_other_fits"]
            found[f"right where no other document fits, {where}"] = right / n
            found[f"attention to dummies, ends less inner places, {where}"] = ends_less_middle(dummies)
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed that the model was trained with")
    parser.add_argument("--json", type=Path, help="file for the figures that a training is judged by")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    figures: dict[str, Any] = {}
    for kind in ("model", "control"):
        model = AutoModelForCausalLM.from_pretrained(arguments.folder, attn_implementation="eager").eval()
        if kind == "control":
            model.load_state_dict(load_file(arguments.folder / "uniform.safetensors"), strict=False)
            model.tie_weights()
        figures[kind] = {str(length): by_place(model, tokenizer, length) for length in LENGTHS}
    card = {
        "name": "position-bias",
        "trained_length": 590,
        "phenomena": ["lost in the middle", "position bias of attention"],
        "engineered": True,
        "seed": arguments.seed,
        "workload_seed": WORKLOAD_SEED,
        "figures": figures,
        "bounds": BOUNDS,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(named(figures), indent=2) + "\n", encoding="utf-8")
    (arguments.folder / "specimen.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(named(figures), indent=1))


if __name__ == "__main__":
    main()
