"""What is made of what: follows from the model and from what is given."""

from typing import Literal

from reelora.catalog import MODELS, ModelFacts
from reelora.errors import ConfigError

__all__ = ["Task", "task_of"]

Task = Literal["text-to-video", "image-to-video", "video-to-video", "text-to-image"]


def task_of(facts: ModelFacts, *, has_image: bool, has_video: bool) -> Task:
    """The task of a model given these besides a prompt; ConfigError for what it cannot take, with the model that can."""
    if problem := _problem(facts, has_image=has_image, has_video=has_video):
        raise ConfigError(problem)
    if facts.model_class == "UNet2DConditionModel":
        return "text-to-image"
    return "image-to-video" if has_image else "video-to-video" if has_video else "text-to-video"


def _problem(facts: ModelFacts, *, has_image: bool, has_video: bool) -> str:
    given = "an image" if has_image else "a video"
    if has_image and has_video:
        return "There are an image and a video to begin with: give one of them."
    if facts.model_class == "UNet2DConditionModel":
        return f"{facts.name} makes still images of text alone: leave {given} out." if has_image or has_video else ""
    if facts.needs_image and has_video:
        return f"{facts.name} begins with an image, not with a video. Use {facts.text_to_video or 'its text-to-video sister'}."
    if facts.needs_image and not has_image:
        return (
            f"{facts.name} takes {facts.in_channels} channels, its latents have {facts.latent_channels}: the others are for a "
            f"conditioning image, which there is none of. Give one, or use {facts.text_to_video or 'its text-to-video sister'}."
        )
    if has_image and not facts.needs_image:
        sister = next((row.hub_id for row in MODELS if row.text_to_video == facts.hub_id and facts.hub_id), "")
        return (
            f"{facts.name} makes videos of text alone: none of its {facts.in_channels} channels is for an image. "
            f"Use {sister or 'its image-to-video sister'}, or begin with a video."
        )
    return ""
