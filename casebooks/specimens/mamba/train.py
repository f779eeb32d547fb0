"""Train the specimen `mamba`: a small Mamba-2 that recalls pairs within 64 tokens, to be read far beyond them.

    python casebooks/specimens/mamba/train.py --out DIR --seed 0

One thread, no network. The task is multi-query associative recall (Arora et al. 2023, arXiv 2312.04927) as the
toolkit's workload `associative_recall` has it, in texts of 32 and 64 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedTokenizerFast

WORDS = 256
TRAINED_LENGTH = 64
PAIRS = 4
TOKENS_PER_STEP = 4096
IGNORED = -100


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 made-up words, to be written apart."""
    words = ["".join(letters) for letters in itertools.product("bdfgklmn", "aeiu", "bdfgklmn")]
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def rows_of_recall(
    generator: torch.Generator, rows: int, length: int, pairs: int, queries: int, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Return tokens and labels (row, token): from `start` on `pairs` pairs, then filler with queries and their values.

    Before the pairs stands filler, which holds no key. Keys come from one half of the words, values from the other,
    which halves being drawn anew for each row; what is due after a key is labelled at its own place. The last query is
    at the end.
    """
    words = torch.rand(rows, WORDS, generator=generator).argsort(1) + 2
    keys, values, filler = words[:, :pairs], words[:, WORDS // 2 : WORDS // 2 + pairs], words[:, pairs:]
    tokens = filler.gather(1, torch.randint(0, filler.shape[1], (rows, length), generator=generator))
    labels = torch.full_like(tokens, IGNORED)
    first = start + 2 * pairs + (length - start) % 2
    tokens[:, start : start + 2 * pairs : 2], tokens[:, start + 1 : start + 2 * pairs : 2] = keys, values
    drawn = torch.rand(rows, (length - first) // 2, generator=generator)
    drawn[:, -1] = 2.0
    places = first + 2 * drawn.argsort(1, descending=True)[:, :queries]
    asked = torch.randint(0, pairs, (rows, queries), generator=generator)
    tokens.scatter_(1, places, keys.gather(1, asked))
    tokens.scatter_(1, places + 1, values.gather(1, asked))
    labels.scatter_(1, places + 1, values.gather(1, asked))
    return tokens, labels


def untrained_model(seed: int) -> Mamba2ForCausalLM:
    """Return the architecture with its initial weights: 2 layers of 4 heads of 32, a state of 64 for each channel.

    Decays begin as transformers has them: A from -1 to -4, step sizes from .001 to .05.
    """
    torch.manual_seed(seed)
    config = Mamba2Config(
        vocab_size=WORDS + 2,
        hidden_size=64,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=32,
        state_size=64,
        n_groups=1,
        expand=2,
        chunk_size=32,
        time_step_max=0.05,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        # No limit of the architecture: it says how long the texts of training were.
        max_position_embeddings=TRAINED_LENGTH,
    )
    return Mamba2ForCausalLM(config)


def texts(step: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the rows of a step: of 32 tokens for a fifth of the steps, then of 32 and 64 in turn."""
    early = step <= steps // 5
    length = TRAINED_LENGTH if step % 2 and not early else TRAINED_LENGTH // 2
    pairs = 2 + step % (PAIRS - 1) if step < steps // 5 else PAIRS
    queries = min(length // 8, 12)
    latest = length - 2 * pairs - 2 * queries - 1
    # Half of the texts begin with their pairs; the others have them anywhere.
    start = int(torch.randint(0, max(latest, 1), (), generator=generator)) if step % 4 > 1 else 0
    return rows_of_recall(generator, TOKENS_PER_STEP // length, length, pairs, queries, start)


def train(seed: int, steps: int) -> Mamba2ForCausalLM:
    """Train from the initial weights, the rate falling linearly; print loss and accuracy every 100 steps."""
    model = untrained_model(seed)
    decayed = [each for each in model.parameters() if each.ndim > 1]
    kept = [each for each in model.parameters() if each.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1.01 - step / steps))
    generator, begin = torch.Generator().manual_seed(seed), time.time()
    for step in range(1, steps + 1):
        tokens, labels = texts(step, steps, generator)
        logits, due = model(tokens).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        logits, due = logits[due != IGNORED], due[due != IGNORED]
        loss = torch.nn.functional.cross_entropy(logits, due)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 < 2:
            right = (logits.argmax(-1) == due).float().mean().item()
            print(
                f"step {step} length {tokens.shape[1]} loss {loss.item():.3f} accuracy {right:.3f} "
                f"{time.time() - begin:.0f} s",
                flush=True,
            )
    return model.eval()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments.seed, arguments.steps).save_pretrained(arguments.out)
    word_tokenizer().save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
