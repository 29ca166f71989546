"""What is known of a model beyond its weights, and the rules that follow from it."""

from dataclasses import dataclass

import torch

from reelora.errors import ConfigError

__all__ = ["ModelFacts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """One published model: what it was trained on and what it can make."""

    name: str
    hub_id: str
    """Where it is published; empty where it is not."""

    model_class: str = "CogVideoXTransformer3DModel"
    """Class in diffusers of the transformer or unet."""

    dtype: torch.dtype = torch.bfloat16
    """The precision it was trained in and is published in."""

    fps: int
    """Frames per second of its training clips; 1 for a model of still images."""

    frame_group: int
    """Clips have ``frame_group * n + 1`` frames."""

    default_frames: int
    max_frames: int
    default_height: int
    default_width: int
    max_side: int
    """The longest side in pixels that it was trained on, in either orientation."""

    is_size_fixed: bool = False
    """Whether its learned position table fits only clips of the default frames and size."""

    default_steps: int = 50
    default_guidance: float = 6.0
    num_text_tokens: int
    """Prompts are padded to this many tokens."""

    scheduler: str = "CogVideoXDPMScheduler"
    """Class that the published folder names."""

    snr_shift_scale: float = 1.0
    """Shift of the noise schedule; a larger value means more noise at the same step."""

    scaling_factor: float
    """Latents are VAE output times this."""

    invert_scale_latents: bool = False
    """Whether the latents of a conditioning image (not of the clip) are divided by it instead."""

    in_channels: int = 16
    """Channels that the network takes: those of the latents, twice as many with a conditioning image."""

    latent_channels: int = 16
    text_to_video: str = ""
    """For a model that needs a conditioning image: where its sister is published that needs none."""

    spatial_stride: int = 8
    temporal_stride: int = 4
    """Pixels and frames for one of the VAE's latents."""

    patch_size: int = 2
    patch_size_t: int | None = None
    """Latents for one token, in space and in time; None where time is not grouped (CogVideoX 1.0)."""

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: one token."""
        return self.spatial_stride * self.patch_size

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames that the causal VAE makes of a clip: ``1 + (num_frames - 1) / temporal_stride``.

        Raises ConfigError unless ``num_frames`` is ``temporal_stride * n + 1``. Source: CogVideoX, arXiv:2408.06072,
        section 2.1.
        """
        groups, rest = divmod(num_frames - 1, self.temporal_stride)
        if groups < 0 or rest:
            raise ConfigError(
                f"num_frames is {num_frames}, but the VAE of {self.name} takes {self.temporal_stride}n + 1 frames: "
                f"{_or(_nearest_steps(num_frames, self.temporal_stride, 1, max(num_frames, 1) + self.temporal_stride))}."
            )
        return 1 + groups

    def padded_latent_frames(self, num_frames: int) -> int:
        """Latent frames as the transformer takes them: ``latent_frames`` rounded up to whole tokens in time.

        CogVideoX 1.5 groups two latent frames in one token, so that 81 frames (21 latents) travel as 22.
        """
        group = self.patch_size_t or 1
        return -(-self.latent_frames(num_frames) // group) * group

    def num_tokens(self, *, num_frames: int, height: int, width: int) -> int:
        """Tokens of one video in a transformer, its text among them; of a still image, latents in a UNet at its finest."""
        space = (height // self.size_multiple) * (width // self.size_multiple)
        return self.num_text_tokens + self.padded_latent_frames(num_frames) // (self.patch_size_t or 1) * space

    @property
    def needs_image(self) -> bool:
        """Whether half of its channels are for the latents of a conditioning image."""
        return self.in_channels == 2 * self.latent_channels

    def check_trainable(self) -> None:
        """Raise ConfigError where the denoiser and the VAE do not belong together."""
        if self.in_channels != self.latent_channels and not self.needs_image:
            raise ConfigError(f"{self._channels}: transformer and VAE are not of one model. Take both from the same folder.")

    @property
    def _channels(self) -> str:
        return f"{self.name} takes {self.in_channels} channels, its latents have {self.latent_channels}"

    def check_video(self, *, num_frames: int, height: int, width: int) -> None:
        """Raise ConfigError that names every wrong number and the nearest that the model can do."""
        sides = (("height", height, self.default_height), ("width", width, self.default_width))
        problems = [self._frames_problem(num_frames), *(self._side_problem(*side) for side in sides)]
        if found := [problem for problem in problems if problem]:
            raise ConfigError(f"{self.name} cannot make {num_frames} frames of {height}x{width}: {'; '.join(found)}.")

    def _frames_problem(self, num_frames: int) -> str:
        if self.is_size_fixed:
            return _fixed_problem("num_frames", num_frames, self.default_frames)
        if num_frames in range(1, self.max_frames + 1, self.frame_group):
            return ""
        near = _or(_nearest_steps(num_frames, self.frame_group, 1, self.max_frames))
        return f"num_frames is {num_frames}, it must be {self.frame_group}n + 1 and at most {self.max_frames}: try {near}"

    def _side_problem(self, side: str, size: int, default: int) -> str:
        if self.is_size_fixed:
            return _fixed_problem(side, size, default)
        step = self.size_multiple
        if size in range(step, self.max_side + 1, step):
            return ""
        near = _or(_nearest_steps(size, step, step, self.max_side))
        return f"{side} is {size}, it must be a multiple of {step} and at most {self.max_side}: try {near}"


def _fixed_problem(what: str, value: int, only: int) -> str:
    return "" if value == only else f"{what} is {value}, its learned position table allows only {only}"


def _nearest_steps(value: int, step: int, first: int, last: int) -> list[int]:
    """The members of ``first, first + step, ... <= last`` on both sides of a value that is none of them."""
    last = first + (last - first) // step * step
    below = min(max(first + (value - first) // step * step, first), last)
    above = max(min(below + step, last), first)
    return sorted({below, above} if first < value < last else {below})


def _or(values: list[int]) -> str:
    return " or ".join(map(str, values))
