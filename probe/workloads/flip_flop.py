"""A memory of one bit: written, ignored, read."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.sample import Sample
from probe.workloads.fitting import fit
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.stretches import Stretch, stretch, written

SYMBOLS: Final[tuple[str, ...]] = ("w", "r", "i", "0", "1")
"""Write, read, ignore, and the two bits, in the order of `flip_flop_symbols`."""
_WRITE, _READ, _IGNORE, _ZERO = range(4)
_MOST_MARKED = 512


@dataclass(frozen=True)
class flip_flop(Grid):
    """The flip-flop language FFL(p) of Liu et al. 2023 (arXiv 2306.00946): what was the last bit written?

    Pairs of an instruction and a bit. The first is a write, the last a read; each other one is to be ignored with
    probability p, else a write or a read alike. The bit of a read is that of the last write, every other bit is random.
    The last read's bit is the answer, and every read before it is right in the text: its loss is the answer's there.
    Words apart by spaces, so that it runs with any tokenizer, and with one of these five words alone. The paper's
    length of 512 counts the last bit, as `lengths` does here; so do special tokens.
    """

    lengths: tuple[int, ...] = (512,)
    """Lengths in tokens, the last bit and special tokens included; never exceeded, and met to within a pair."""
    p: tuple[float, ...] = (0.8, 0.98, 0.1)
    """Probability that an instruction is to be ignored; the paper trains on 0.8, and 0.98 and 0.1 are its tails."""

    def check(self) -> None:
        self.check_shares("p", self.p)

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"p": tuple(map(float, self.p))}

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        name = hashlib.sha256(f"{self.seed}/{cell.name}".encode()).digest()[:8]
        seed = int.from_bytes(name, "big")

        def symbols(pairs: int) -> NDArray[np.int64]:
            row: NDArray[np.int64] = flip_flop_symbols(np.random.default_rng(seed), 1, pairs, cell.value("p"))[0]
            return row

        def whole(pairs: int) -> MarkedText:
            return written(" ".join(SYMBOLS[symbol] for symbol in symbols(pairs)))

        pairs, _ = fit(whole, cell.length, tokenizer, what=f"{self.name}: a write and a read", least=2)
        drawn = symbols(pairs)
        instruction, bit = drawn[0::2], drawn[1::2]
        writes, reads = np.flatnonzero(instruction == _WRITE), np.flatnonzero(instruction == _READ)
        answer = SYMBOLS[bit[-1]]
        facts = {
            "num_pairs": pairs,
            "num_writes": len(writes),
            "num_reads": len(reads),
            "age_pairs": int(pairs - 1 - writes[-1]),
        }
        made = self.made(cell, _marked(drawn), tokenizer, answer=f" {answer}", facts=facts)
        return _placed(made, instruction)


def flip_flop_symbols(rng: np.random.Generator, rows: int, pairs: int, p: float) -> NDArray[np.int64]:
    """Draw sequences of FFL(p), `[row symbol]` with two symbols a pair, as indices into `SYMBOLS`.

    Each takes rows × pairs × 8 bytes a few times over; the vocabulary of five symbols needs no tokenizer.
    """
    # Two numbers a pair, one pair after another: of one row, a longer sequence begins like a shorter one.
    drawn, coin = np.moveaxis(rng.random((pairs, 2, rows)), (0, 1, 2), (2, 0, 1))
    instruction = np.where(drawn < p, _IGNORE, np.where(drawn < (1 + p) / 2, _WRITE, _READ))
    instruction[:, 0], instruction[:, -1] = _WRITE, _READ
    bit = (coin < 0.5).astype(np.int64)
    last_write = np.maximum.accumulate(np.where(instruction == _WRITE, np.arange(pairs), 0), axis=1)
    bit = np.where(instruction == _READ, np.take_along_axis(bit, last_write, axis=1), bit)
    return np.stack([instruction, bit + _ZERO], axis=-1).reshape(rows, 2 * pairs)


def _marked(symbols: NDArray[np.int64]) -> MarkedText:
    """Return the text up to the last instruction, every write and read in it marked."""
    pieces: list[str | Stretch] = []
    num_pairs = len(symbols) // 2
    last = max(at for at in range(num_pairs) if symbols[2 * at] == _WRITE)
    for at in range(num_pairs):
        instruction, bit = SYMBOLS[symbols[2 * at]], SYMBOLS[symbols[2 * at + 1]]
        if at == num_pairs - 1:
            pieces.append(stretch("question", instruction))
        elif at == last:
            pieces += [stretch("needle", instruction, " ", stretch("needle_value", bit)), " "]
        elif symbols[2 * at] == _WRITE:
            pieces += [stretch(f"write {at}", instruction, " ", bit), " "]
        elif symbols[2 * at] == _READ:
            pieces += [stretch(f"read {at}", instruction), f" {bit} "]
        else:
            pieces.append(f"{instruction} {bit} ")
    return written(*pieces)


def _placed(sample: Sample, instruction: NDArray[np.int64]) -> Sample:
    """Keep the spans of the last writes, and state where every write and read stands as facts.

    `read_positions` are those of the tokens after which a read's bit is due, `last_write_positions` those of the bits
    that they are due to give. Of earlier writes, `write_1` is the nearest before the last.
    """
    spans = {span.name: span for span in sample.spans}
    earlier = [at for at in np.flatnonzero(instruction == _WRITE) if f"write {at}" in spans][::-1]
    kept = [spans["needle"], spans["needle_value"], spans["question"]]
    kept += [
        dataclasses.replace(spans[f"write {at}"], name=f"write_{back + 1}")
        for back, at in enumerate(earlier[:_MOST_MARKED])
    ]
    bits, reads, sources = [], [], []
    for at, kind in enumerate(instruction):
        if kind == _WRITE:
            bits.append((spans.get(f"write {at}") or spans["needle"]).stop - 1)
        elif kind == _READ:
            reads.append((spans.get(f"read {at}") or spans["question"]).stop - 1)
            sources.append(bits[-1])
    facts = {"write_positions": bits, "read_positions": reads, "last_write_positions": sources}
    kept.sort(key=lambda span: (span.start, -span.stop))
    return dataclasses.replace(sample, spans=tuple(kept), facts={**sample.facts, **facts})
