"""The weights that did best on the held-out clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from .checkpoint import find_step, read_state
from .shown import showing

__all__ = ["showing_best"]


@contextmanager
def showing_best(model: nn.Module, folder: Path, step: int) -> Iterator[None]:
    """The model with the weights that the run in ``folder`` would have saved after ``step``; DataError if they are damaged."""
    tensors, _ = read_state(find_step(folder / "checkpoints", step))
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    values = [tensors.get(f"mean.{name}", tensors[f"weights.{name}"]).to(p.device) for name, p in named.items()]
    with showing(list(named.values()), values):
        yield
