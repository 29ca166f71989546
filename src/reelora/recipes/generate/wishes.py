"""What a command line asks for, as orders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reelora.errors import ConfigError
from reelora.generate import Axis
from reelora.recipes.adapter_texts import split_adapter

from .like import Likeness, read_likeness
from .orders import Order
from .prompt_file import read_prompts
from .sweep import called, read_axes, swept

__all__ = ["Plotted", "Wishes"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The videos that are wanted."""

    prompts: tuple[str, ...] = ()
    prompt_file: Path | None = None
    like: Path | None = None
    grid: tuple[str, ...] = ()
    """``NAME=VALUE,VALUE`` each."""
    adapters: tuple[str, ...] = ()
    """``FILE[=STRENGTH][,alpha=64|,from=PRODUCER]`` each."""
    image: str | None = None
    video: str | None = None
    seed: int | None = None
    videos_per_prompt: int = 1
    batch_size: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def plotted(self) -> "Plotted":
        """Orders with a seed each, and the axes along which they lie.

        Raises ConfigError for contradictory wishes, no prompt, and what reading a file or a grid raises.
        """
        likeness = read_likeness(self.like) if self.like else None
        orders = self._like(likeness.order) if likeness else self._plain()
        if not self.grid:
            return Plotted(orders=_with_seeds(orders, self.seed or 0), axes=(), likeness=likeness)
        if len(orders) != 1:
            raise ConfigError("A grid is of one prompt and one video: name others along it, as in --grid 'prompt=a cat|a dog'.")
        adapters = [split_adapter(text) for text in orders[0].adapters]
        axes = read_axes(self.grid, adapters)
        files = {called(file): file for file in adapters}
        return Plotted(orders=swept(replace(orders[0], seed=self.seed), axes, files), axes=tuple(axes), likeness=likeness)

    def _plain(self) -> list[Order]:
        common = Order(prompt="", adapters=self.adapters, image=self.image, video=self.video, settings=self.settings)
        orders = [replace(common, prompt=prompt) for prompt in self.prompts]
        if self.prompt_file:
            orders += read_prompts(self.prompt_file, common)
        if not orders and any(axis.startswith("prompt=") for axis in self.grid):
            orders = [common]
        if not orders:
            raise ConfigError("Say what the video shows: a prompt, --prompts FILE, or --like VIDEO.")
        return [order for order in orders for _ in range(self.videos_per_prompt)]

    def _like(self, order: Order) -> list[Order]:
        """An earlier video's order with what is asked for over it."""
        if self.prompt_file or len(self.prompts) > 1:
            raise ConfigError("--like makes one video again, perhaps with another prompt: leave the others out.")
        changed = {
            "prompt": self.prompts[0] if self.prompts else None,
            "adapters": self.adapters or None,
            "image": self.image,
            "video": self.video,
            "seed": self.seed,
        }
        known = {name: value for name, value in changed.items() if value is not None}
        order = replace(order, **known, settings={**order.settings, **self.settings})
        return [order if place == 0 else replace(order, seed=None) for place in range(self.videos_per_prompt)]


@dataclass(frozen=True, kw_only=True)
class Plotted:
    """Orders, and how they lie on a plot."""

    orders: list[Order]
    axes: tuple[Axis, ...]
    likeness: Likeness | None


def _with_seeds(orders: list[Order], first: int) -> list[Order]:
    """Those without a seed count up from the first by their place."""
    return [replace(order, seed=first + place) if order.seed is None else order for place, order in enumerate(orders)]
