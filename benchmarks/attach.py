"""Putting trainable branches on a transformer and taking them off again."""

from collections.abc import Iterator

from peft import LoraConfig

from reelora import LoraSpec, attach, detach

from .models import WIDTHS, build_transformer
from .side_by_side import Row, seconds_of_both

__all__ = ["run"]

NUM_LAYERS = 6


def run() -> Iterator[Row]:
    """Rank 128 on the four projections of every attention."""
    for width in WIDTHS:
        bare, wrapped = (build_transformer(width, num_layers=NUM_LAYERS) for _ in range(2))
        spec = LoraSpec(rank=128, alpha=64)
        config = LoraConfig(**spec.to_peft_dict())

        def ours(model=bare, spec=spec) -> None:
            attach(model, spec)
            detach(model)

        def theirs(model=wrapped, config=config) -> None:
            model.add_adapter(config, "default")
            model.delete_adapters("default")

        yield seconds_of_both(f"attach and detach, {width} width, {NUM_LAYERS} blocks", ours, theirs)
