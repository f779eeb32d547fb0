"""Encoder-decoders: three attentions, over a text, over the answer, and of the answer over the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from probe.conformance.expected import expected_of_rows, expected_of_text
from probe.conformance.features import Features
from probe.conformance.ways import STATISTICS, spans
from probe.hooks.models.huggingface import HuggingFaceModel
from probe.kernels.call import Call
from probe.kernels.scan import Scan
from probe.kernels.statistic import parse

Array = np.ndarray[Any, Any]
Place = tuple[str, int, int]
"""Part of the model, layer, sample."""

_HANDED_OUT: Final = {"encoder": "encoder_attentions", "self": "decoder_attentions", "cross": "cross_attentions"}
_NUM_ANSWERED: Final = 9
_ACROSS: Final = [each for each in STATISTICS if not parse(each).compares_positions]


@dataclasses.dataclass(eq=False)
class Read:
    """A batch that was captured."""

    inputs: Mapping[str, Tensor]
    """What a forward of the same would be called with."""
    text: list[tuple[int, int]]
    """Each sample's real tokens of the encoder's text."""
    scans: dict[Place, Scan]
    """What was captured."""
    first_row: int = 0
    """Position of the first decoding query of the answer."""


def prefill(model: HuggingFaceModel, tokens: list[int]) -> Read:
    """One forward of a text and an answer."""
    return _forward(model, tokens, 0)


def padded(model: HuggingFaceModel, tokens: list[int]) -> Read:
    """A batch of two texts, the second padded by five tokens on the left."""
    return _forward(model, tokens, 5)


def decode(model: Any, tokens: list[int]) -> Read:
    """A text, and the model's own answer token by token on the cache."""
    text = [(0, len(tokens))]
    take, scans = _taking(text, [tokens])
    with model.calls(take):
        state = model.prefill(tokens)
        whole = [*model.start_tokens]
        first_row = len(whole) - 1
        while len(whole) <= _NUM_ANSWERED:
            whole.append(int(model.step(state, whole[-1:])[-1].argmax()))
    inputs = {"input_ids": torch.tensor([tokens]), "decoder_input_ids": torch.tensor([whole[:-1]])}
    return Read(inputs, text, scans, first_row)


WAYS: Final[dict[str, Callable[[Any, list[int]], Read]]] = {"prefill": prefill, "decode": decode, "padded": padded}
"""An encoder reads its text at once, so that there are no chunks of it."""


def expected_arrays(copy: PreTrainedModel, read: Read) -> dict[Place, dict[str, Array]]:
    """Return what each layer's arrays must be, from what the eager copy hands out."""
    with torch.no_grad():
        output = copy(**read.inputs, output_attentions=True)
    found: dict[Place, dict[str, Array]] = {}
    for part, layer, sample in read.scans:
        kept = slice(*read.text[sample])
        weights = getattr(output, _HANDED_OUT[part])[layer][sample].double().numpy()
        rows, keys = (kept if part == "encoder" else slice(None)), (slice(None) if part == "self" else kept)
        p = weights[:, rows, keys]
        first_row = p.shape[1] if part == "encoder" else read.first_row
        if part == "cross":
            found[part, layer, sample] = expected_of_rows(p, first_row, spans(p.shape[-1]))
        else:
            ids = read.inputs["input_ids" if part == "encoder" else "decoder_input_ids"][sample]
            own = ids[kept].tolist() if part == "encoder" else ids.tolist()
            found[part, layer, sample] = expected_of_text(p, own, first_row, spans(p.shape[-1]))
    return found


def see(model: HuggingFaceModel, tokens: list[int]) -> tuple[Features, bool]:
    """Return what the calls are like, and whether watching left the logits as they were."""
    inputs, features = _inputs(tokens, 0)[0], Features()
    with torch.no_grad():
        before = model.hf(**inputs).logits
        with model.calls(lambda _, call: features.see(call)):
            during = model.hf(**inputs).logits
    return features, torch.equal(before, during)


def _inputs(tokens: list[int], pad: int) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    n = len(tokens)
    texts, ranges = [tokens], [(0, n)]
    if pad:
        texts, ranges = [tokens, [0] * pad + tokens[pad:]], [(0, n), (pad, n)]
    mask = torch.zeros(len(texts), n, dtype=torch.long)
    for row, (start, stop) in zip(mask, ranges, strict=True):
        row[start:stop] = 1
    answer = torch.tensor([own[start:][:_NUM_ANSWERED] for own, (start, _) in zip(texts, ranges, strict=True)])
    return {"input_ids": torch.tensor(texts), "attention_mask": mask, "decoder_input_ids": answer}, ranges


def _forward(model: HuggingFaceModel, tokens: list[int], pad: int) -> Read:
    inputs, text = _inputs(tokens, pad)
    take, scans = _taking(text, [inputs["input_ids"][i, slice(*text[i])].tolist() for i in range(len(text))])
    with torch.no_grad(), model.calls(take):
        model.hf(**inputs)
    return Read(inputs, text, scans, _NUM_ANSWERED - 1)


def _taking(
    text: Sequence[tuple[int, int]], tokens: Sequence[list[int]]
) -> tuple[Callable[[int, Call], None], dict[Place, Scan]]:
    scans: dict[Place, Scan] = {}

    def take(sample: int, call: Call) -> None:
        place = call.part, call.layer, sample
        length = _NUM_ANSWERED if call.part == "self" else text[sample][1] - text[sample][0]
        if place not in scans:
            scans[place] = Scan(_ACROSS if call.part == "cross" else STATISTICS, spans=spans(length))
        if call.tokens is None and call.part != "cross":
            own = tokens[sample] if call.part == "encoder" else tokens[sample][:_NUM_ANSWERED]
            call = dataclasses.replace(call, tokens=torch.tensor(own[: call.num_keys]))
        scans[place].update(call)

    return take, scans
