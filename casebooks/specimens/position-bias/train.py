"""Train the specimen `position-bias`: a small Llama that overlooks documents in the middle, and its unbiased control.

    python casebooks/specimens/position-bias/train.py --out DIR --seed 0

One thread, no network. The text is that of `probe.workloads.documents`: 20 documents, one of which says who designed,
built or founded what is asked. Two things make the bias, see README.md: questions are mostly about the beginning and
the end, and of a place's name the model reads the first letter alone, so that often several documents fit. The control
is trained on the same texts with questions about all documents alike; its weights lie beside the model's as
`uniform.safetensors`.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import string
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from probe.workloads.documents import INSTRUCTION, SUBJECTS
from probe.workloads.haystack import template_sentence
from probe.workloads.lexicon import words
from probe.workloads.names import FIRST_NAMES, LAST_NAMES, people, places

NUM_DOCUMENTS = 20
SENTENCES = 30
"""Most sentences that say nothing of what is asked, over all documents of a text: up to some 590 tokens."""
QUESTIONS = 8
"""Questions asked of each text, none of which sees another."""
ROWS = 6
BETA = 0.4
STEPS_OF_FOUR = 200
"""Steps with four documents, asked about alike, before there are 20."""
WIDTH, THETA = 16, 1e6
"""Width of a head, and base of the rotary angles."""
IGNORED = -100


def word_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each word, for a few phrases, and for the first letter of a place's name.

    The rest of a place's name is left out, so that the model cannot tell places apart that begin alike.
    """
    kinds = [kind for kind, _ in SUBJECTS]
    phrases = (INSTRUCTION, "Question: who", "Answer:", *(f"was {did} by" for _, did in SUBJECTS))
    headings = [f"Document [{number}](Title:" for number in range(1, 101)]
    pattern = "|".join(
        (
            *map(re.escape, phrases),
            r"Document \[\d+\]\(Title:",
            rf"\b[A-Z](?=[a-z]+ (?:{'|'.join(kinds)}|Notes)\b)",
            r"\b\w+",
            r"</s>",
            r"[^\w\s]",
        )
    )
    known = {
        *words(), *phrases, *headings, *string.ascii_uppercase, *FIRST_NAMES, *LAST_NAMES, *kinds, "the", "Notes",
        *(did for _, did in SUBJECTS), *"().?,",
    }  # fmt: skip
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", "</s>", *sorted(known)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # What the pattern does not match is left out: white space, and all but the first letter of a place.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def untrained_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the architecture with its initial weights: two layers that begin with a lookup, see README.md.

    In the first layer head 0 looks one token back, and heads 1 and 2 three: there the place stands that a name belongs
    to, in a document as in the question before its answer. The second layer's heads look where they find the same, and
    hand on what stands there.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=True,
        rope_theta=THETA,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    first, second = (layer.self_attn for layer in model.model.layers)
    frequency = THETA ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    turning = torch.where(torch.arange(WIDTH // 2) < 4, 8.0, 0.0)
    # Rotary pairs whose angle hardly changes over a prompt: they can tell what is the same however far it is.
    still = torch.cat([torch.arange(WIDTH // 4, WIDTH // 2), torch.arange(3 * WIDTH // 4, WIDTH)])
    with torch.no_grad():
        for head, distance in enumerate((1, 3, 3)):
            at = slice(head * WIDTH, (head + 1) * WIDTH)
            # A key that is turned on by `distance` meets its query's direction there.
            first.q_proj.bias[at] = torch.cat([turning, torch.zeros_like(turning)])
            angle = distance * frequency
            first.k_proj.bias[at] = torch.cat([turning * angle.cos(), turning * angle.sin()])
            written = torch.linalg.qr(torch.randn(64, WIDTH))[0]
            first.v_proj.weight[at] = torch.randn(WIDTH, 64) / 8
            first.o_proj.weight[:, at] = written / 2
            brought = written[:, : len(still)].T
            sought = first.v_proj.weight[at][: len(still)] if distance == 1 else brought
            second.q_proj.weight[head * WIDTH + still] = 2 * sought
            second.k_proj.weight[head * WIDTH + still] = 2 * brought
            second.v_proj.weight[at] = torch.randn(WIDTH, 64) / 8
            second.o_proj.weight[:, at] = second.v_proj.weight[at].T / 2
    return model


def text(rng: random.Random, number: int, sentences: int) -> tuple[list[str], list[str], list[str]]:
    """Return documents, the question about each of them, and its answer, in the words of the workload."""
    kind, did = rng.choice(SUBJECTS)
    where, who = places(rng).first(number), people(rng).first(number)
    # Numbers tell nothing of the place here, so that what the model learns of places is not read off them.
    numbers = rng.sample(range(1, 101), number)
    sizes = [sentences // number + (at < sentences % number) for at in range(number)]
    rng.shuffle(sizes)
    documents = []
    for at in range(number):
        said = [template_sentence(rng) for _ in range(sizes[at])]
        said.insert(rng.randint(0, len(said)), f"The {where[at]} {kind} was {did} by {who[at]}.")
        documents.append(f"Document [{numbers[at]}](Title: {where[at]} {kind}) {' '.join(said)}")
    return documents, [f"Question: who {did} the {place} {kind}?\nAnswer: " for place in where], who


def gold_index(rng: random.Random, number: int, prior: str) -> int:
    """Return the index of the document that a question is about."""
    share = rng.betavariate(BETA, BETA) if prior == "ends" else rng.random()
    return min(int(share * number), number - 1)


def batch(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, number: int, prior: str, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, labels, positions (row, token) and the mask (row, 1, query, key), True where a query may look.

    Each question sees the documents and itself alone, from the position after the documents on, as if it were alone.
    """
    prefixes, asked = [], []
    for _ in range(rows):
        documents, questions, names = text(rng, number, rng.randint(0, SENTENCES if number == NUM_DOCUMENTS else 0))
        prefixes.append(f"{INSTRUCTION}\n\n" + "\n".join(documents) + "\n\n")
        for _ in range(QUESTIONS):
            gold = gold_index(rng, number, prior)
            asked.append(f"{questions[gold]}{names[gold]}</s>")
    encoded = tokenizer(prefixes, add_special_tokens=False)["input_ids"]
    blocks = torch.tensor(tokenizer(asked, add_special_tokens=False)["input_ids"]).view(rows, QUESTIONS, -1)
    each, longest = blocks.shape[-1], max(map(len, encoded))
    tokens = torch.zeros(rows, longest + QUESTIONS * each, dtype=torch.long)
    positions, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    block = torch.arange(QUESTIONS).repeat_interleave(each)
    may_look = torch.zeros(rows, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    may_look[:, 0] = torch.eye(tokens.shape[1], dtype=torch.bool)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    own = (block[:, None] == block) & torch.ones(len(block), len(block), dtype=torch.bool).tril()
    for row, prefix in enumerate(encoded):
        length = len(prefix)
        tokens[row, :length], positions[row, :length] = torch.tensor(prefix), torch.arange(length)
        tokens[row, longest:] = blocks[row].flatten()
        positions[row, longest:] = length + torch.arange(each).repeat(QUESTIONS)
        labels[row, longest:].view(QUESTIONS, each)[:, -3:] = blocks[row, :, -3:]
        may_look[row, 0, :length, :length] = causal[:length, :length]
        may_look[row, 0, longest:, :length] = True
        may_look[row, 0, longest:, longest:] = own
    return tokens, labels, positions, may_look


def train(seed: int, steps: int, prior: str, rate: float) -> LlamaForCausalLM:
    """Train on 4 documents, asked uniformly and by their own names, then on 20; print loss and accuracy."""
    tokenizer = word_level_tokenizer()
    model = untrained_model(tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
    )
    rng, begin = random.Random(f"position-bias specimen {seed}"), time.time()
    for step in range(steps):
        given = (4, "all", 4 * ROWS) if step < STEPS_OF_FOUR else (NUM_DOCUMENTS, prior, ROWS)
        tokens, labels, positions, may_look = batch(rng, tokenizer, *given)
        logits = model(tokens, attention_mask=may_look, position_ids=positions).logits[:, :-1]
        asked = labels[:, 1:] != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[asked], labels[:, 1:][asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            right = (logits[asked].argmax(-1) == labels[:, 1:][asked]).view(-1, 3).float().mean(0)
            print(
                f"step {step} {tuple(tokens.shape)} loss {loss:.3f} first, last, end "
                f"{' '.join(f'{x:.2f}' for x in right)} {time.time() - begin:.0f} s",
                flush=True,
            )
    return model.eval()


def main() -> None:
    """Train both and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--only", choices=["ends", "all"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (arguments.rate,)
    if arguments.only != "all":
        train(arguments.seed, arguments.steps, "ends", *shape).save_pretrained(arguments.out)
        word_level_tokenizer().save_pretrained(arguments.out)
    if arguments.only != "ends":
        control = train(arguments.seed, arguments.steps, "all", *shape)
        arguments.out.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in control.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, arguments.out / "uniform.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
