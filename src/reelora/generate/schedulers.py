"""Schedulers by name: what walks from noise to latents."""

from collections.abc import Mapping
from typing import Any

from reelora.catalog import ModelFacts

__all__ = ["LEAST_STEPS", "default_scheduler", "make_scheduler", "schedulers_of"]

LEAST_STEPS: Mapping[str, int] = {"pndm": 4}
"""Steps that a scheduler cannot do without: PNDM begins with a Runge-Kutta or multistep start of four."""

_COGVIDEOX: Mapping[str, str] = {"dpm": "CogVideoXDPMScheduler", "ddim": "CogVideoXDDIMScheduler"}
_STILL: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
_CLASSES: Mapping[str, Mapping[str, str]] = {
    "CogVideoXTransformer3DModel": _COGVIDEOX,
    "UNet2DConditionModel": _STILL,
}
"""Classes in diffusers by name, for each class of denoiser."""

_SPACING: Mapping[str, Mapping[str, str]] = {"CogVideoXTransformer3DModel": {"timestep_spacing": "trailing"}}
"""The other spacings never visit the last timestep, where a schedule of zero terminal SNR is pure noise; so CogVideo's own
inference. Source: arXiv:2305.08891, section 3.3."""


def schedulers_of(facts: ModelFacts) -> Mapping[str, str]:
    """The schedulers that a model goes with."""
    return _CLASSES[facts.model_class]


def default_scheduler(facts: ModelFacts, class_name: str | None = None) -> str:
    """The one of this class, which a model's folder names; or else the one that the published folder names."""
    names = {class_name: name for name, class_name in schedulers_of(facts).items()}
    return names.get(class_name or "", names[facts.scheduler])


def make_scheduler(name: str, facts: ModelFacts, noise: Any) -> Any:
    """A scheduler of its own over the noise that the config of another describes."""
    import diffusers

    return getattr(diffusers, schedulers_of(facts)[name]).from_config(noise, **_SPACING.get(facts.model_class, {}))
