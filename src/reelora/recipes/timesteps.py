"""Which noise levels a run trains on, as a plot."""

from pathlib import Path

import torch

from reelora import __version__
from reelora.components import load_components
from reelora.train import Diffusion, TimestepConfig, loss_weights, seen_shares

from . import html
from .config import TrainConfig
from .files import check_new, write_text
from .model import find_model

__all__ = ["timesteps_section", "write_timesteps_page"]

_BINS = 50


def write_timesteps_page(config: TrainConfig, path: Path) -> None:
    """Write a page that shows how often every noise level is seen and how much its error counts.

    Raises ConfigError for a file that is there already, before anything is read.
    """
    check_new(path)
    diffusion = Diffusion.of(load_components(find_model(config.model), roles=["scheduler"]).scheduler)
    page = html.page("Timesteps", [timesteps_section(config.loop.timesteps, diffusion)], footer=f"Reelora {__version__}.")
    write_text(path, page)


def timesteps_section(config: TimestepConfig, diffusion: Diffusion | None = None) -> str:
    """How often each part of the schedule is seen, relative to uniform; with ``diffusion`` also how much its error counts."""
    places = [(index + 0.5) / _BINS for index in range(_BINS)]
    seen = seen_shares(config, num_timesteps=1000, num_bins=_BINS).tolist()
    lines = {"how often it is seen": list(zip(places, seen, strict=True))}
    if diffusion is not None:
        times = (torch.tensor(places) * diffusion.num_timesteps).long()
        weights = loss_weights(diffusion, times, config).tolist()
        lines["how much its error counts"] = list(zip(places, weights, strict=True))
    return html.section(
        "Timesteps", html.line_plot(lines, x="place in the schedule: 0 clean, 1 noise", y="relative to uniform")
    )
