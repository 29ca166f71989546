"""Blocks of bytes in the host's memory that take turns in a few buffers on a device, copied ahead of their use.

Nothing is ever copied back: what lies in the host's memory is never written to.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

__all__ = ["BUFFERS", "Copier", "Ring"]

BUFFERS = 2
"""One is computed with while the other is filled. At the turn from the forward to the backward pass, and from there to the next
step, the one that is needed is still there."""
_NOWHERE = -1

Ticket = object
"""A copy under way."""


class Copier(Protocol):
    """Copies from the host's memory to buffers on a device."""

    def start(self, buffer: Tensor, source: Tensor) -> Ticket:
        """Begin to copy. What was queued for the device until now may still read the buffer; nothing later does."""
        ...

    def finish(self, ticket: Ticket) -> None:
        """Let nothing that is queued from now on run before the copy is there."""
        ...


class AtOnce:
    """Copies while the caller waits."""

    def start(self, buffer: Tensor, source: Tensor) -> Ticket:
        buffer.copy_(source)
        return None

    def finish(self, ticket: Ticket) -> None:
        pass


class Beside:
    """Copies from pinned memory on a stream of its own, beside what the device computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, buffer: Tensor, source: Tensor) -> Ticket:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        buffer.record_stream(self._stream)  # if the buffer is let go of meanwhile, its memory waits for the copy
        with torch.cuda.stream(self._stream):
            buffer.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def finish(self, ticket: Ticket) -> None:
        assert isinstance(ticket, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(ticket)


class Ring:
    """Gives each of ``blocks`` (flat, uint8, in the host's memory) a place on ``device`` when it is asked for.

    While one is used, the one that will be asked for next is on its way: the one that came next the last time that these two
    were used one after the other, and the first time the one behind it. So the order is learned in one step, whatever it is:
    there and back in training, in a circle where only the forward pass runs.
    """

    def __init__(self, blocks: Sequence[Tensor], device: torch.device, *, copier: Copier | None = None) -> None:
        self._blocks = blocks
        self._copier = copier or _copier_for(device)
        size = max(block.numel() for block in blocks)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(BUFFERS, len(blocks)))]
        self._held = [_NOWHERE] * len(self._buffers)
        """The block in each buffer, the one on its way included."""
        self._under_way: dict[int, Ticket] = {}
        self._then: dict[tuple[int, int], int] = {}
        """The block that came after these two."""
        self._before, self._now = _NOWHERE, _NOWHERE
        self.num_copies = self.copied_bytes = 0

    @property
    def nbytes(self) -> int:
        """Of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def host_bytes(self) -> int:
        """Of the blocks."""
        return sum(block.nbytes for block in self._blocks)

    def fetch(self, index: int) -> Tensor:
        """The buffer that holds a block, to be used until the next is asked for; never kept.

        In a rehearsal on fake tensors it is any buffer, and nothing moves.
        """
        if detect_fake_mode() is not None:
            return self._buffers[0]
        if index != self._now:
            self._turn_to(index)
        return self._buffers[self._held.index(index)]

    def _turn_to(self, index: int) -> None:
        self._bring(index)
        if index in self._under_way:
            self._copier.finish(self._under_way.pop(index))
        self._then[self._before, self._now] = index
        self._before, self._now = self._now, index
        self._bring(self._then.get((self._before, index), min(index + 1, len(self._blocks) - 1)))

    def _bring(self, index: int) -> None:
        """Begin to copy a block into the buffer that is not in use, unless it is there or on its way."""
        if index in self._held:
            return
        place = next(place for place, held in enumerate(self._held) if held != self._now or held == _NOWHERE)
        self._under_way.pop(self._held[place], None)
        self._held[place] = index
        block = self._blocks[index]
        self._under_way[index] = self._copier.start(self._buffers[place][: block.numel()], block)
        self.num_copies += 1
        self.copied_bytes += block.nbytes


_COPIERS: dict[str, Callable[[torch.device], Copier]] = {"cuda": Beside}


def _copier_for(device: torch.device) -> Copier:
    make = _COPIERS.get(device.type)
    return make(device) if make else AtOnce()
