"""Train the specimen `needle`: a small Qwen3 that finds one sentence in a text of up to 256 tokens, and fails beyond.

    python casebooks/specimens/needle/train.py --out DIR --seed 0

One thread, no network; the same seed on the same machine and versions gives the same weights. `measure.py` beside it
writes the figures. The recipe shapes the phenomenon on purpose, see README.md: the first layers see two tokens each,
and of the last layer's heads four take part before the others do.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from probe.workloads.haystack import template_sentence
from probe.workloads.lexicon import CITIES, NEEDLE, NUMBERS, QUESTION, words

TRAINED_LENGTH = 256
TOKENS_PER_STEP = 4096
FIRST_HEADS = (2, 5, 9, 13)
IGNORED = -100


def word_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word and punctuation mark of the lexicon."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def untrained_model(tokenizer: PreTrainedTokenizerFast, seed: int, heads: int = 16) -> Qwen3ForCausalLM:
    """Return the architecture with its initial weights: 3 layers, the first two with a window of 2 tokens."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        use_sliding_window=True,
        sliding_window=2,
        max_position_embeddings=32768,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def repeated_strings(rng: torch.Generator, vocabulary: int, longest: int) -> tuple[Tensor, Tensor]:
    """Return tokens and labels (batch, 3 × longest): each row repeats a random string of 8 to `longest` tokens.

    What repeats is labelled. The strings' lengths differ, or else the model learns to look back by a fixed distance.
    """
    batch = TOKENS_PER_STEP // (3 * longest)
    strings = torch.randint(2, vocabulary, (batch, longest), generator=rng)
    lengths = torch.randint(8, longest + 1, (batch, 1), generator=rng)
    positions = torch.arange(3 * longest)
    tokens = strings.gather(1, positions % lengths)
    return tokens, tokens.where(positions > lengths, IGNORED)


def document(rng: random.Random, length: int) -> tuple[str, list[tuple[int, int]]]:
    """Return a text of about `length` words at most, and the character range of each answer in it.

    Needles about different cities stand anywhere in the haystack, up to one for 32 tokens; up to four of them are asked
    for, one after the other.
    """
    num_needles = rng.randint(1, max(1, length // 32))
    num_questions = rng.randint(1, min(num_needles, 4))
    cities = rng.sample(CITIES, num_needles)
    numbers = rng.sample(NUMBERS, 4 * num_needles)
    values = [" ".join(numbers[4 * i : 4 * i + 4]) for i in range(num_needles)]
    needles = [NEEDLE.format(city=city, value=value) for city, value in zip(cities, values, strict=True)]
    sentences: list[str] = []
    room = length - 11 * num_needles - 19 * num_questions
    while (sentence := template_sentence(rng)) and num_words(sentence) <= room:
        sentences.append(sentence)
        room -= num_words(sentence)
    for text in needles:
        sentences.insert(rng.randint(0, len(sentences)), text)
    text, answers = " ".join(sentences), []
    for i in rng.sample(range(num_needles), num_questions):
        text += " " + QUESTION.format(city=cities[i]) + " "
        answers.append((len(text), len(text) + len(values[i])))
        text += values[i] + "."
    return text, answers


def num_words(sentence: str) -> int:
    """Return how many tokens the word-level tokenizer makes of a sentence of the lexicon."""
    return len(sentence.split()) + sentence.count(",") + sentence.count(".") + sentence.count("?")


def documents(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, length: int, others: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, answer labels and other labels, each (batch, token); a share `others` of the rest is labelled."""
    texts, answers = zip(*(document(rng, length) for _ in range(TOKENS_PER_STEP // length)), strict=True)
    encoded = tokenizer(list(texts), padding=True, return_offsets_mapping=True, return_tensors="pt")
    tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
    in_answer = torch.zeros_like(tokens, dtype=torch.bool)
    for row, ranges in enumerate(answers):
        for start, stop in ranges:
            in_answer[row] |= (offsets[row, :, 0] >= start) & (offsets[row, :, 1] <= stop)
    in_answer &= tokens != tokenizer.pad_token_id
    drawn = torch.tensor([rng.random() < others for _ in range(tokens.numel())]).view_as(tokens)
    kept = drawn & ~in_answer & (tokens != tokenizer.pad_token_id)
    return tokens, tokens.where(in_answer, IGNORED), tokens.where(kept, IGNORED)


@contextmanager
def only_heads(model: Qwen3ForCausalLM, heads: tuple[int, ...]) -> Iterator[None]:
    """Let only these heads of the last layer reach the output projection."""
    keep = torch.zeros(model.config.num_attention_heads, model.config.head_dim)
    keep[list(heads)] = 1
    projection = model.model.layers[-1].self_attn.o_proj
    hook = projection.register_forward_pre_hook(lambda _, args: (args[0] * keep.flatten(),))
    try:
        yield
    finally:
        hook.remove()


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens, each predicted from the position before it."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def length_at(step: int, rng: random.Random) -> int:
    """Return the step's text length in tokens: longer ones enter one after the other, short ones stay in the mix."""
    known = [length for length, since in ((40, 225), (64, 150), (128, 225), (256, 325)) if step >= since]
    return max(known) if rng.random() < 0.7 else rng.choice(known)


def train(seed: int, steps: int, all_heads_from: int, heads: int) -> Qwen3ForCausalLM:
    """Train on repeated strings until step 150, then on texts; print loss and answer accuracy every 25 steps."""
    tokenizer = word_level_tokenizer()
    model = untrained_model(tokenizer, seed, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
    )
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"needle specimen {seed}")
    begin = time.time()
    for step in range(steps):
        others = None
        if step < 150:
            tokens, labels = repeated_strings(generator, len(tokenizer), 16 if step < 100 else 24)
        else:
            tokens, labels, others = documents(rng, tokenizer, length_at(step, rng), 0.25)
        with only_heads(model, FIRST_HEADS if step < all_heads_from else tuple(range(heads))):
            logits = model(tokens).logits
        loss = loss_of(logits, labels)
        if step % 25 == 0 or step == steps - 1:
            asked = labels[:, 1:] != IGNORED
            accuracy = (logits[:, :-1].argmax(-1) == labels[:, 1:])[asked].float().mean()
            print(
                f"step {step} length {tokens.shape[1]} loss {loss:.3f} accuracy {accuracy:.3f} "
                f"{time.time() - begin:.0f} s",
                flush=True,
            )
        if others is not None:
            loss = loss + 0.3 * loss_of(logits, others)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--all-heads-from", type=int, default=450, help="step from which all heads take part")
    parser.add_argument("--heads", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = train(arguments.seed, arguments.steps, arguments.all_heads_from, arguments.heads)
    model.save_pretrained(arguments.out)
    # A new one: padding would have left its mark on the one that was trained with.
    word_level_tokenizer().save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
