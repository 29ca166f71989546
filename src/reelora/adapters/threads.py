"""Small tensors on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for what is computed inside, as many as before for what comes after; to be used as a decorator too.

    Work that goes module by module through thin matrices meets at barriers all the time, a factorisation at every column. On
    idle cores a second thread gains nothing there (QR of 3072 x 128 in float64: 3.8 ms with one or two) or a fifth (a whole
    conversion). Where cores are shared each barrier waits for the scheduler: 290 ms, and a conversion takes ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
