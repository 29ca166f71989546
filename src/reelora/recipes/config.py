"""What a training run is told, in one file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from reelora.adapters import ATTENTION_TARGETS, LoraSpec
from reelora.catalog import ModelFacts
from reelora.data import ClipSettings
from reelora.settings import Settings
from reelora.train import LoopConfig

from .machine import Precision

__all__ = ["AdapterConfig", "DataConfig", "PreviewConfig", "TrainConfig"]

AsModel = Literal["model"]
Count = Annotated[int, Field(ge=1)]


class DataConfig(Settings):
    """The clips and what they are made into."""

    folder: Path = Path("clips")
    """Videos with .txt captions beside them, or with a metadata.jsonl or metadata.csv."""
    cache: Path = Path(".reelora")
    """Where latents and prompt states are kept; relative to the folder of the clips."""
    num_frames: Count | AsModel = "model"
    height: Count | AsModel = "model"
    """Pixels; clips are scaled to cover the size and cropped in the middle, never squashed."""
    width: Count | AsModel = "model"
    fps: Annotated[float, Field(gt=0)] | AsModel = "model"
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A clip with less than this share of the frames is refused; one with more is padded with its last frame."""
    skip_refused: bool = False
    """Go on without the clips that cannot be used; they are listed either way."""
    held_out: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Clips kept back to measure on: a share, or a number of them."""
    encode_batch_size: Count = 1
    """Clips that the VAE encodes at once."""

    @property
    def cache_folder(self) -> Path:
        return self.folder / self.cache

    def clip_settings(self, facts: ModelFacts) -> ClipSettings:
        """The size and rate of clips for a model; ConfigError names the nearest that it can do."""
        defaults = {
            "num_frames": facts.default_frames,
            "height": facts.default_height,
            "width": facts.default_width,
            "fps": facts.fps,
        }
        asked = {name: getattr(self, name) for name in defaults}
        chosen = {name: defaults[name] if value == "model" else value for name, value in asked.items()}
        facts.check_video(num_frames=chosen["num_frames"], height=chosen["height"], width=chosen["width"])
        return ClipSettings(**chosen, min_share=self.min_share)


class AdapterConfig(Settings):
    """The shape of the adapter."""

    rank: Count = 128
    alpha: Annotated[float, Field(gt=0)] = 64
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ATTENTION_TARGETS
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """How A is drawn; B is zero."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""

    def spec(self) -> LoraSpec:
        return LoraSpec(**self.model_dump())


class PreviewConfig(Settings):
    """Videos made while training, base beside adapter."""

    prompts: tuple[str, ...] = ()
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between previews; 0: none."""
    seed: int = 0


class TrainConfig(Settings):
    """One training run."""

    model: str = "pocket"
    """A folder in diffusers' layout, a hub id, or pocket: the embedded model."""
    output: Path = Path("runs/first")
    """The run's folder; a run that is found there goes on."""
    trigger_words: tuple[str, ...] = ()
    """Words of the captions that the adapter is about; noted in its file."""
    device: str = "auto"
    precision: Precision = "auto"
    """Of the frozen base; the trained weights are always float32."""
    tensorboard: bool = True
    data: DataConfig = DataConfig()
    lora: AdapterConfig = AdapterConfig()
    loop: LoopConfig = LoopConfig()
    preview: PreviewConfig = PreviewConfig()
