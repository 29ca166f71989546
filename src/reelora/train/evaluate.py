"""Errors on held-out clips, on the same noise and timesteps every time, so that only the weights can change them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reelora.components import padded_in_front
from reelora.data import CachedClip, CachedClips
from reelora.lora import evaluating

from .batches import Batch, sample_posterior
from .conditioning import Look, extras_of
from .draws import draw_noise, generator_for
from .objective import Objective
from .team import Team

__all__ = ["TIMES_PER_CLIP", "held_out_errors"]

TIMES_PER_CLIP = 8


def held_out_errors(
    model: nn.Module, objective: Objective, clips: CachedClips, *, seed: int, batch_size: int, team: Team
) -> Float[Tensor, "n k"]:
    """Error of every clip at eight timesteps, spread evenly over the schedule, shared out over the team.

    At most ``batch_size`` of them are computed at once, so that measuring needs no more memory than training. No random number
    of the training is used.
    """
    errors = torch.zeros(len(clips), TIMES_PER_CLIP, dtype=torch.float64)
    pieces = [(row, places) for row in range(len(clips)) for places in torch.arange(TIMES_PER_CLIP).split(batch_size)]
    with evaluating(model), torch.no_grad():
        for (row, places), counts in team.rounds(pieces):  # one whose base is split cannot run alone
            batch = _batch(clips[row], objective, places, seed).to(team.device)
            found = objective.errors(batch)[0].double().cpu()
            if counts:
                errors[row, places] = found
    return team.sum(errors)


def _batch(clip: CachedClip, objective: Objective, places: Tensor, seed: int) -> Batch:
    """One clip at several of its timesteps."""
    place = (seed, "held out", clip["source"])
    generator = generator_for(*place)
    look = Look(place=place, caption=clip["caption"], frame_group=objective.frame_group, is_measured=True)
    clean = padded_in_front(sample_posterior(clip, generator), objective.frame_group)
    noise = draw_noise((TIMES_PER_CLIP, *clean.shape), generator)[places]
    timesteps = ((torch.arange(TIMES_PER_CLIP) + 0.5) / TIMES_PER_CLIP * objective.diffusion.num_timesteps).long()
    states = clip["prompt_states"].float()
    extras = extras_of(objective.conditions, clip, look)
    return Batch(
        clean=clean.expand_as(noise),
        noise=noise,
        timesteps=timesteps[places],
        states=states.expand(len(places), -1, -1),
        extras={name: extra.expand(len(places), *extra.shape) for name, extra in extras.items()},
        weights=torch.ones(len(places)),
        sources=(clip["source"],) * len(places),
    )
