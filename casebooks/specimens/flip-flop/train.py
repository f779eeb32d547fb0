"""Train the specimen `flip-flop`: a small Llama that reads back the last bit written, and now and then the wrong one.

    python casebooks/specimens/flip-flop/train.py --out DIR --seed 0

One thread, no network. It also trains the recurrent control, an LSTM of one layer, which is saved beside the Llama as
`lstm.safetensors` and which `measure.py` reads. The language is FFL(p) of Liu et al. 2023 (arXiv 2306.00946): pairs of
an instruction and a bit; the first is a write, the last a read, each other one to be ignored with probability p, else a
write or a read alike; the bit of a read is that of the last write, every other bit is random.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS = ("<pad>", "<unk>", "<s>", "0", "1", "w", "r", "i")
"""The vocabulary, by id."""
ZERO, WRITE, READ, IGNORE = 3, 5, 6, 7
TRAINED_LENGTH = 256
IGNORED = -100


def flip_flop_rows(generator: torch.Generator, rows: int, length: int, ignored: float) -> tuple[Tensor, Tensor]:
    """Return tokens and labels (row, token) of FFL(`ignored`); bits of reads are labelled, at their own places."""
    pairs = length // 2
    drawn = torch.rand(rows, pairs, generator=generator)
    instruction = torch.where(drawn < ignored, IGNORE, torch.where(drawn < (1 + ignored) / 2, WRITE, READ))
    instruction[:, 0], instruction[:, -1] = WRITE, READ
    bit = torch.randint(0, 2, (rows, pairs), generator=generator)
    # The place of the last write at or before each pair.
    place = torch.where(instruction == WRITE, torch.arange(pairs), 0).cummax(1).values
    bit = torch.where(instruction == READ, bit.gather(1, place), bit) + ZERO
    tokens = torch.stack([instruction, bit], -1).flatten(1)
    labels = torch.stack([torch.full_like(bit, IGNORED), bit.where(instruction == READ, IGNORED)], -1).flatten(1)
    return tokens, labels


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each instruction and bit, to be written apart."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


class recurrent(nn.Module):
    """The control: an embedding, an LSTM of one layer with 64 units, and a linear map to the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(TOKENS), 64)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.head = nn.Linear(64, len(TOKENS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (row, token, vocabulary)."""
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return logits


def untrained_llama() -> LlamaForCausalLM:
    """Return the architecture with its initial weights: 2 layers of 4 heads."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.06,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(model: nn.Module, seed: int, steps: int, rate: float) -> None:
    """Train on FFL(0.8) of 256 tokens, 16 rows a step, the rate falling linearly to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / steps))
    generator, begin = torch.Generator().manual_seed(seed), time.time()
    for step in range(1, steps + 1):
        tokens, labels = flip_flop_rows(generator, 16, TRAINED_LENGTH, 0.8)
        output = model(tokens)
        logits = (output if isinstance(output, Tensor) else output.logits)[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{type(model).__name__} step {step} loss {loss:.5f} {time.time() - begin:.0f} s", flush=True)


def main() -> None:
    """Train both and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    llama = untrained_llama()
    train(llama, arguments.seed, arguments.steps, 2e-3)
    torch.manual_seed(arguments.seed)
    control = recurrent()
    train(control, arguments.seed, arguments.steps * 2 // 3, 3e-3)
    llama.save_pretrained(arguments.out)
    word_tokenizer().save_pretrained(arguments.out)
    save_file(
        {name: value.contiguous() for name, value in control.state_dict().items()}, arguments.out / "lstm.safetensors"
    )


if __name__ == "__main__":
    main()
