"""Names of the axes of blocks: one trace may hold blocks of several sizes, and the disk tells them apart."""

from __future__ import annotations

from typing import Final

BLOCK_AXES: Final = ("query_block", "key_block", "token_block")
"""Axes whose entries stand for blocks of positions."""


def stored_dim(dim: str, block_tokens: int | None) -> str:
    """Return an axis' name on the disk."""
    return f"{dim}_{block_tokens}" if dim in BLOCK_AXES and block_tokens is not None else dim


def plain_dim(dim: str) -> tuple[str, int | None]:
    """Return the word of the vocabulary for an axis' name on the disk, and its block size, None where it says none."""
    word, _, tokens = dim.rpartition("_")
    return (word, int(tokens)) if word in BLOCK_AXES and tokens.isdecimal() else (dim, None)
