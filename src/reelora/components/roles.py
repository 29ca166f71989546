"""The roles of a pipeline and what can play them, as tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reelora.errors import ConfigError, nearest

__all__ = ["CONFIG_FILES", "LIBRARIES", "PIPELINES", "ROLES", "TOKENIZER_FILES", "Library", "check_roles", "library_of"]

ROLES: tuple[str, ...] = ("tokenizer", "text_encoder", "transformer", "unet", "vae", "scheduler")
"""In the order of loading; a folder has a transformer or a unet."""

CONFIG_FILES: Mapping[str, str] = {
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""Where a role describes itself, if not in ``config.json``."""

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
"""One of these holds the pieces: without any, transformers makes a tokenizer that knows no word."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """How one library lays out a role's folder."""

    weight_stem: str
    """Name of the weights without ``.safetensors``."""

    classes: Mapping[str, frozenset[str]]
    """Classes that can be run, by role."""


LIBRARIES: Mapping[str, Library] = {
    "transformers": Library(
        weight_stem="model",
        classes={
            "tokenizer": frozenset({"T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast"}),
            "text_encoder": frozenset({"T5EncoderModel", "CLIPTextModel"}),
        },
    ),
    "diffusers": Library(
        weight_stem="diffusion_pytorch_model",
        classes={
            "transformer": frozenset({"CogVideoXTransformer3DModel"}),
            "unet": frozenset({"UNet2DConditionModel"}),
            "vae": frozenset({"AutoencoderKLCogVideoX", "AutoencoderKL"}),
            "scheduler": frozenset(
                {
                    "CogVideoXDPMScheduler",
                    "CogVideoXDDIMScheduler",
                    "DDIMScheduler",
                    "DPMSolverMultistepScheduler",
                    "EulerAncestralDiscreteScheduler",
                    "EulerDiscreteScheduler",
                    "LMSDiscreteScheduler",
                    "PNDMScheduler",
                }
            ),
        },
    ),
}

PIPELINES = frozenset({"CogVideoXPipeline", "CogVideoXImageToVideoPipeline"})
"""Stock pipelines that take exactly these roles."""


def library_of(role: str) -> tuple[str, Library]:
    """The library whose classes play a role."""
    return next((name, library) for name, library in LIBRARIES.items() if role in library.classes)


def check_roles(names: Iterable[str]) -> None:
    """Raise ConfigError that names every word that is no role, with the nearest that is."""
    unknown = [name for name in names if name not in ROLES]
    if unknown:
        hints = "; ".join(f"{name!r} is no role, {nearest(name, ROLES)}" for name in unknown)
        raise ConfigError(f"{hints}.")
