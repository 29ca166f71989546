"""The roles of a pipeline and what can play them, as tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reelora.errors import ConfigError, nearest

__all__ = [
    "CONFIG_FILES",
    "LIBRARIES",
    "PIPELINES",
    "ROLES",
    "TEXT_ROLES",
    "TOKENIZER_FILES",
    "Library",
    "PipelineRow",
    "check_roles",
    "is_tokenizer",
    "library_of",
]

TEXT_ROLES: tuple[tuple[str, str], ...] = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
"""Tokenizers, each with the encoder that takes its tokens. Only SDXL has two."""

ROLES: tuple[str, ...] = (*(role for pair in TEXT_ROLES for role in pair), "transformer", "unet", "vae", "scheduler")
"""In the order of loading; a folder has a transformer or a unet."""

CONFIG_FILES: Mapping[str, str] = {
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
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
            "tokenizer_2": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
            "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
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


@dataclass(frozen=True, kw_only=True)
class PipelineRow:
    """What a stock pipeline is made of."""

    roles: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    """What it is made with besides the roles."""


_COGVIDEOX = PipelineRow(roles=("tokenizer", "text_encoder", "transformer", "vae", "scheduler"))

PIPELINES: Mapping[str, PipelineRow] = {
    "CogVideoXPipeline": _COGVIDEOX,
    "CogVideoXImageToVideoPipeline": _COGVIDEOX,
    "StableDiffusionPipeline": PipelineRow(
        roles=("tokenizer", "text_encoder", "unet", "vae", "scheduler"),
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "StableDiffusionXLPipeline": PipelineRow(
        roles=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "unet", "vae", "scheduler"),
        options={"add_watermarker": False},
    ),
}
"""Stock pipelines by class."""


def is_tokenizer(role: str) -> bool:
    """Whether a role has words and no weights."""
    return any(role == tokenizer for tokenizer, _ in TEXT_ROLES)


def library_of(role: str) -> tuple[str, Library]:
    """The library whose classes play a role."""
    return next((name, library) for name, library in LIBRARIES.items() if role in library.classes)


def check_roles(names: Iterable[str]) -> None:
    """Raise ConfigError that names every word that is no role, with the nearest that is."""
    unknown = [name for name in names if name not in ROLES]
    if unknown:
        hints = "; ".join(f"{name!r} is no role, {nearest(name, ROLES)}" for name in unknown)
        raise ConfigError(f"{hints}.")
