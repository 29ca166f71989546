"""Which model runs, where, and how precisely."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reelora.generate import Session
from reelora.recipes.machine import Precision, find_device, find_dtype
from reelora.recipes.model import POCKET, find_model

from .like import Likeness

__all__ = ["Place"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model and a device. What is None follows from an earlier video, or else from the machine."""

    model: str | None = None
    """A folder, a hub id or ``pocket``; of a SAT checkpoint also None, for what its YAML names."""
    device: str = "auto"
    precision: Precision | None = None
    sat_config: tuple[Path, ...] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)
    plan: str = "auto"

    def like(self, likeness: Likeness | None) -> "Place":
        """With what an earlier video says for whatever is open."""
        is_open = self.model is None and not self.sat_config
        model = (likeness.model if likeness else POCKET) if is_open else self.model
        told = likeness.precision if likeness else "auto"
        return replace(self, model=model, precision=self.precision or told)

    def open(self) -> Session:
        """The model; nothing of it but its configs is read yet."""
        device = find_device(self.device)
        return Session(
            find_model(self.model) if self.model else None,
            dtype=find_dtype(self.precision or "auto", device),
            device=device,
            sat_config=self.sat_config or None,
            paths=self.paths or None,
            plan=self.plan,
        )
