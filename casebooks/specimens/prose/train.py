"""Train the specimen `prose`: a small language model that has read two books and can copy what came before.

    python casebooks/specimens/prose/train.py --out DIR --seed 0

One thread, no network: the texts lie beside this file and are checked by hash. First it learns to repeat random
strings, then it reads prose with fewer and fewer of them in between. `--checkpoints FOLDER` keeps weights on
the way, which `measure.py` beside this file measures; `--after FILE` begins with prose, from such weights.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEXTS = {
    "king-james-bible.txt.xz": "67145111406361997bcdc4ca4a54b77b5205c95edf41c80d69d37f7247cc2bf3",
    "jargon-file.txt.xz": "dee3e91b8e71da3e993ad4feecf773903daba2ba38edfb6c81e5cc0d87821e52",
}
"""Files beside this one, and the SHA-256 of the text in them."""
VOCABULARY = 1536
TRAINED_LENGTH = 512
ROWS = 4
STRING_RATE, PROSE_RATE = 3.5e-3, 2.5e-3
HELD_OUT, FIRST_HELD_OUT = 20, 7
"""One paragraph in so many is held out, and which is the first."""
STAGES = ((160, 16), (480, 32), (VOCABULARY, 32))
"""Before prose: how many different tokens the repeated strings are drawn from, and how long they are at most."""
LEARNT = 0.5
"""A stage ends where the mean loss of its last 20 steps is below this; in nats a token."""
IGNORED = -100


def paragraphs() -> list[str]:
    """Return the paragraphs of both texts in order; ValueError where a text is not the one that is named."""
    parts: list[str] = []
    for name, digest in TEXTS.items():
        text = lzma.decompress(Path(__file__).with_name(name).read_bytes())
        if hashlib.sha256(text).hexdigest() != digest:
            raise ValueError(f"{name} is not the text that the specimen is trained on")
        parts += [part.strip() for part in text.decode().split("\n\n") if part.strip()]
    return parts


def split(parts: list[str]) -> tuple[list[str], list[str]]:
    """Return the paragraphs to train on and those held out."""
    kept = [part for index, part in enumerate(parts) if index % HELD_OUT != FIRST_HELD_OUT]
    return kept, parts[FIRST_HELD_OUT::HELD_OUT]


def byte_level_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 1,536 tokens that puts `<s>` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def untrained_model(seed: int) -> Qwen3ForCausalLM:
    """Return the architecture with its initial weights: 4 layers, the first two with a window of 2 tokens."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        use_sliding_window=True,
        sliding_window=2,
        max_position_embeddings=TRAINED_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def repeated_strings(
    generator: torch.Generator, num_tokens: int, rows: int, length: int, longest: int
) -> tuple[Tensor, Tensor]:
    """Return rows of `<s>` and a random string of 8 to `longest` tokens again and again, and labels (row, length).

    The string's first copy, which nothing foretells, is not labelled.
    """
    strings = torch.randint(2, num_tokens, (rows, longest), generator=generator)
    lengths = torch.randint(8, longest + 1, (rows, 1), generator=generator)
    place = torch.arange(length - 1)
    tokens = strings.gather(1, place % lengths)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.long), tokens], 1)
    labels = tokens.clone()
    labels[:, 1:][place < lengths] = IGNORED
    return tokens, labels


def prose_rows(generator: torch.Generator, text: Tensor, rows: int, length: int) -> Tensor:
    """Return rows of `<s>` and a stretch of text from anywhere (row, length)."""
    starts = torch.randint(0, len(text) - length, (rows, 1), generator=generator)
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), text[starts + torch.arange(length - 1)]], 1)


def repeating_rows(step: int) -> int:
    """Return how many of a step's four rows repeat a random string: half at first, an eighth from step 401 on."""
    return 2 if step <= 150 else 1 if step <= 400 else step % 2


class training:
    """AdamW on a model, whose rate each update is given."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        vectors = [each for each in model.parameters() if each.ndim == 1]
        matrices = [each for each in model.parameters() if each.ndim == 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.model, self.optimizer, self.begin = model, torch.optim.AdamW(groups, betas=(0.9, 0.98)), time.time()

    def update(self, tokens: Tensor, labels: Tensor, rate: float) -> float:
        """Take one step and return the loss in nats a labelled token."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits = self.model(tokens).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def report(self, what: str, loss: float, checkpoint: Path | None) -> None:
        """Print the loss, and keep the weights in `checkpoint` where it is given."""
        print(f"{what} loss {loss:.3f} {time.time() - self.begin:.0f} s", flush=True)
        if checkpoint is not None:
            save_file({name: each.half() for name, each in self.model.model.state_dict().items()}, checkpoint)


def learn_to_repeat(model: Qwen3ForCausalLM, seed: int, checkpoints: Path | None) -> None:
    """Train on repeated random strings, stage by stage."""
    run, generator, step = training(model), torch.Generator().manual_seed(seed), 0
    for num_tokens, longest in STAGES:
        last: list[float] = []
        while len(last) < 20 or sum(last) / 20 > LEARNT:
            step += 1
            rows = repeated_strings(generator, num_tokens, 4096 // (3 * longest), 3 * longest + 1, longest)
            last = [*last[-19:], run.update(*rows, STRING_RATE * min(step / 50, 1))]
            if step % 25 == 0:
                path = checkpoints / f"string-{step:05}.safetensors" if checkpoints else None
                run.report(f"strings of {num_tokens}: step {step}", last[-1], path)
    print(f"strings learnt in {step} steps", flush=True)
    if checkpoints:
        save_file(model.model.state_dict(), checkpoints / "strings-learnt.safetensors")


def read_prose(model: Qwen3ForCausalLM, text: Tensor, seed: int, steps: int, checkpoints: Path | None) -> None:
    """Train on prose among repeated strings; the rate rises over 150 steps and falls by a cosine."""
    run, generator = training(model), torch.Generator().manual_seed(seed + 1)
    for step in range(1, steps + 1):
        repeats = repeating_rows(step)
        prose = prose_rows(generator, text, ROWS - repeats, TRAINED_LENGTH)
        strings, labels = repeated_strings(generator, VOCABULARY, repeats, TRAINED_LENGTH, 160)
        rate = PROSE_RATE * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01) * min(0.1 + step / 150, 1)
        loss = run.update(torch.cat([prose, strings]), torch.cat([prose, labels]), rate)
        if step % 50 == 0 or step == steps:
            path = checkpoints / f"prose-{step:05}.safetensors" if checkpoints and step % 100 == 0 else None
            run.report(f"prose: step {step}", loss, path)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--after", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept, _ = split(paragraphs())
    tokenizer = byte_level_tokenizer(kept)
    tokenizer.save_pretrained(arguments.out)
    text = torch.tensor(tokenizer("\n\n".join(kept), add_special_tokens=False)["input_ids"])
    model = untrained_model(arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(text)} tokens", flush=True)
    if arguments.checkpoints:
        arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    if arguments.after:
        model.model.load_state_dict(load_file(arguments.after))
    else:
        learn_to_repeat(model, arguments.seed, arguments.checkpoints)
    read_prose(model, text, arguments.seed, arguments.steps, arguments.checkpoints)
    model.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
