"""Whether the devices of a model still answer, after one of them has reported an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from probe.errors import DeviceLost


def lost_device(model: nn.Module) -> str | None:
    """Return which device of a model no longer computes, and what it said; None where all of them do.

    After most errors of a GPU (memory that cannot be corrected, an illegal access, a card that fell off the bus) every
    later call of the process fails too, whatever it reads; after others, such as memory that did not suffice, none
    does. What an error is called does not tell the two apart, so that each device is asked to add two numbers.
    """
    devices = dict.fromkeys(each.device for each in (*model.parameters(), *model.buffers()) if not each.is_meta)
    for device in devices:
        try:
            torch.ones(2, device=device).sum().item()
        except torch.OutOfMemoryError:
            continue
        except RuntimeError as error:
            return f"{device} does not answer any more ({str(error).strip().splitlines()[0]:.200})"
    return None


@contextmanager
def losses_named(model: nn.Module) -> Iterator[None]:
    """Raise `DeviceLost` for an error within the block after which a device of the model no longer computes."""
    try:
        yield
    except RuntimeError as error:
        if why := lost_device(model):
            raise DeviceLost(why) from error
        raise
