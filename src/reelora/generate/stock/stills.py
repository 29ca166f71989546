"""The stock pipelines of still images. Imports diffusers and much of transformers, so import this only where one is made."""

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from .guided import Guided

__all__ = ["ImagePipeline", "LargeImagePipeline"]


class ImagePipeline(Guided, StableDiffusionPipeline):
    """Text to image with one text encoder: SD 1.5."""


class LargeImagePipeline(Guided, StableDiffusionXLPipeline):
    """Text to image with two text encoders: SDXL."""
