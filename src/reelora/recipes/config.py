"""What a training run is told, in one file."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from reelora.adapters import ATTENTION_TARGETS, LoraSpec
from reelora.catalog import ModelFacts
from reelora.data import (
    CaptionLines,
    ChoiceKind,
    ClipChoice,
    ClipList,
    ClipSettings,
    Fit,
    Media,
    Padding,
    list_clips,
    with_repeats,
    with_trigger,
)
from reelora.lora import Storage
from reelora.settings import Settings
from reelora.train import OF_TEXT_ENCODERS, LoopConfig

from .buckets import BucketText, Size, automatic_sizes, checked_sizes
from .machine import Precision

__all__ = [
    "AdapterConfig",
    "BaseConfig",
    "DataConfig",
    "ImageConfig",
    "PreviewConfig",
    "PriorConfig",
    "TextEncoderConfig",
    "TrainConfig",
]

AsLoop = Literal["loop"]
AsModel = Literal["model"]
Auto = Literal["auto"]
Usual = Literal["usual"]
Count = Annotated[int, Field(ge=1)]


class DataConfig(Settings):
    """The clips and what they are made into."""

    folder: Path = Path("clips")
    """Videos with .txt captions beside them, or with a metadata.jsonl, a metadata.csv, or a videos.txt and prompts.txt."""
    cache: Path = Path(".reelora")
    """Where latents and prompt states are kept; relative to the folder of the clips. Many data sets may share one."""
    media: Media = "videos"
    """What counts as a clip in a folder without a list; an image is a clip of one frame."""
    video_column: str | Usual = "usual"
    """Column of a list that names the files; usual: file_name or video."""
    caption_column: str | Usual = "usual"
    """Column of a list with the captions, more of them in NAME_2, NAME_3 ...; usual: text, caption or prompt."""
    caption_lines: CaptionLines = "joined"
    """Whether the lines of a .txt file are one caption, or several of which each epoch takes another."""
    default_caption: str = ""
    """The caption of clips that have none; empty: a clip without a caption is refused."""
    trigger: str = ""
    """A word put in front of every caption that does not hold it; empty: none."""
    repeats: dict[str, Count] = Field(default_factory=dict)
    """How often clips are seen in an epoch, by patterns of their names: {"stars/*" = 3}; lists have a column repeats."""
    buckets: Literal["one", "auto"] | tuple[BucketText, ...] = "one"
    """Sizes that clips may have; each goes to the nearest. one: num_frames, height and width alone. auto: all numbers of
    frames that the model takes, up to num_frames, in seven shapes of about the area of height and width. Or a list:
    ["49x480x720", "49x720x480", "17x480x720"]."""
    num_frames: Count | AsModel = "model"
    height: Count | AsModel = "model"
    """Pixels."""
    width: Count | AsModel = "model"
    fps: Annotated[float, Field(gt=0, le=1000)] | AsModel = "model"
    """Frame k is the picture on screen k / fps seconds after the first one."""
    fit: Fit = "crop"
    """Where a clip has another shape, which is never squashed. crop: scaled to cover the size, and cut at the centre;
    crop_start: cut so that the top or left stays; crop_end: the bottom or right; pad: scaled to fit inside, black around it;
    pad_edge: its outermost pixels around it."""
    padding: Padding = "last"
    """Where a clip is too short: its last frame is repeated, it is looped, or it bounces back and forth."""
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A clip with less than this share of the frames is refused; one with more is padded."""
    choice: ChoiceKind = "head"
    """Which pieces of a video are taken. head: its beginning; chunks: one after the other; sliding: one every `stride`
    frames; uniform: `pieces` of them, evenly spread."""
    stride: Count = 8
    """Frames between the beginnings of sliding pieces."""
    pieces: Count = 4
    """Uniform pieces of each video."""
    most_pieces: Count = 1000
    """No video gives more pieces than this; those beyond are listed."""
    skip_refused: bool = False
    """Go on without the clips that cannot be used; they are listed either way."""
    held_out: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Clips kept back to measure on: a share, or a number of them. All pieces of one video stay together."""
    encode_batch_size: Count | Auto = "auto"
    """Clips that the VAE encodes at once. auto: one on a CPU, as many as fit in half of an accelerator's free memory."""
    decode_workers: Count | Auto = "auto"
    """Clips that are decoded at once while others are encoded. auto: half as many as there are cores, at most eight."""

    @property
    def cache_folder(self) -> Path:
        return self.folder / self.cache

    def read_list(self) -> ClipList:
        """The clips of the folder, with the trigger word and the repeats. Raises as ``list_clips`` does."""
        clips = list_clips(
            self.folder,
            video_column=None if self.video_column == "usual" else self.video_column,
            caption_column=None if self.caption_column == "usual" else self.caption_column,
            caption_lines=self.caption_lines,
            default_caption=self.default_caption,
            media=self.media,
        )
        clips = with_trigger(clips, self.trigger) if self.trigger else clips
        return with_repeats(clips, self.repeats)

    def clip_settings(self, facts: ModelFacts) -> ClipSettings:
        """The size and rate of clips for a model, those of the first bucket; ConfigError names the nearest that it can do."""
        num_frames, height, width = self.sizes(facts)[0]
        fps = facts.fps if self.fps == "model" else self.fps
        return ClipSettings(
            num_frames=num_frames,
            height=height,
            width=width,
            fps=fps,
            min_share=self.min_share,
            fit=self.fit,
            padding=self.padding,
        )

    def clip_choice(self) -> ClipChoice:
        """Which pieces of videos are taken."""
        return ClipChoice(kind=self.choice, stride=self.stride, count=self.pieces, most=self.most_pieces)

    def sizes(self, facts: ModelFacts) -> tuple[Size, ...]:
        """Frames, height and width of every bucket; ConfigError for those that a model cannot do."""
        defaults = {"num_frames": facts.default_frames, "height": facts.default_height, "width": facts.default_width}
        asked = [default if getattr(self, name) == "model" else getattr(self, name) for name, default in defaults.items()]
        if isinstance(self.buckets, tuple):
            return checked_sizes(self.buckets, facts)
        num_frames, height, width = asked
        facts.check_video(num_frames=num_frames, height=height, width=width)
        whole = (num_frames, height, width)
        return (
            (whole, *automatic_sizes(whole, facts, has_images=self.media != "videos")) if self.buckets == "auto" else (whole,)
        )


class BaseConfig(Settings):
    """The frozen model in less memory of the device, for one that has little; storage and stream may be combined."""

    storage: Storage = "precision"
    """What the large weights of its blocks are kept as. precision: as `precision` says. fp8 and int8: one byte for each, with a
    scale for each row; int8 is closer to the original. nf4: four and a half bits (`pip install bitsandbytes`). All three are
    slower, since every use makes the weights again. The adapter learns beside weights so rounded, and is for the model as it
    was all the same."""
    stream: bool = False
    """Keep these weights in the host's memory and copy each block to the device while another computes, which has room for two;
    slower where a block computes faster than it is copied. The numbers stay the same, bit for bit."""

    @property
    def is_special(self) -> bool:
        """Whether the base is kept in any other way than as it is loaded."""
        return self.stream or self.storage != "precision"


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
    rank_pattern: dict[str, Count] = Field(default_factory=dict)
    """Ranks of single modules, by endings of their paths: {"attn1.to_q" = 32}."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Alphas of single modules, likewise."""

    def spec(self) -> LoraSpec:
        return LoraSpec(**self.model_dump())


class TextEncoderConfig(Settings):
    """Branches on the text encoders of Stable Diffusion too, which are then in memory while training; one file holds all."""

    rank: Annotated[int, Field(ge=0)] = 0
    """0: the text encoders are not trained."""
    alpha: Annotated[float, Field(gt=0)] = 8
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | AsLoop = "loop"
    """Rate after the warm-up, which follows the schedule of the loop; loop: that of loop.optimizer. Text encoders forget
    easily: a fifth of it, or less, is usual."""

    def spec(self) -> LoraSpec:
        return LoraSpec(**self.model_dump(exclude={"learning_rate"}))

    def identity(self) -> dict[str, object]:
        """What the numbers of a run depend on."""
        return self.model_dump(mode="json", exclude={"learning_rate"} if self.learning_rate == "loop" else set())


class ImageConfig(Settings):
    """How an image-to-video model is shown the first picture of a clip; it is made noisy, so that motion is learned."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of clips that are seen without their picture."""
    draws: Annotated[int, Field(ge=0)] = 8
    """Noisy latents of every picture, made before the training and kept in the cache, of which each look takes one. 0: new ones
    at every look, with the VAE in memory."""


class PriorConfig(Settings):
    """Clips of the class that yours belong to (any dog, where yours are of one dog), which the model is to make as before.

    Every batch holds as many of them as of yours. They are made to the size of yours, and cached like them.
    """

    folder: Path | Literal[""] = ""
    """Videos with captions, as in data.folder; empty: none, or those that the base makes."""
    caption: str = ""
    """The caption of those that have none, such as a video of a dog; what the base makes clips of."""
    count: Annotated[int, Field(ge=0)] = 0
    """Clips that the base itself makes of the caption before the training, where there is no folder; 0: none. They are kept in
    the cache: the same ones are not made again, and a larger number makes only those that are new."""
    steps: Count | AsModel = "model"
    """Steps of the sampler for each of them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first of them; each has the next one."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much their loss counts beside that of yours."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.count and self.folder:
            raise ValueError("has a folder of clips and a count of clips to make: set one of them")
        if self.count and not self.caption.strip():
            raise ValueError("has a count of clips to make, but no caption to make them of")
        return self


class PreviewConfig(Settings):
    """Videos or pictures made while training, base beside adapter: those of step 0 are the base's."""

    prompts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    """Of an image-to-video model: the picture that each prompt begins with."""
    steps: Count | AsModel = "model"
    """Steps of the sampler for each of them."""
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between previews; 0: none."""
    seed: int = 0


class TrainConfig(Settings):
    """One training run."""

    model: str = "pocket"
    """A folder in diffusers' layout, a hub id, or pocket: the embedded model."""
    init_from: str = ""
    """An adapter of any dialect to go on with, FILE[,alpha=64|,from=PRODUCER], at the strength that it was trained with; the
    table lora has to name its rank and modules. Empty: begin anew."""
    output: Path = Path("runs/first")
    """The run's folder; a run that is found there goes on."""
    trigger_words: tuple[str, ...] = ()
    """Words of the captions that the adapter is about; noted in its file."""
    device: str = "auto"
    precision: Precision = "auto"
    """Of the frozen base; the trained weights are always float32."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the adapter's file; bf16 halves it."""
    tensorboard: bool = True
    """Write the figures for TensorBoard too, into the run's folder."""
    wandb: str = ""
    """Project of Weights & Biases that the figures go to as well (`pip install wandb`); empty: none."""
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    image: ImageConfig = ImageConfig()
    base: BaseConfig = BaseConfig()
    lora: AdapterConfig = AdapterConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    loop: LoopConfig = LoopConfig()
    preview: PreviewConfig = PreviewConfig()

    @model_validator(mode="after")
    def _has_one_rate(self) -> Self:
        if self.loop.optimizer.kind == "prodigy" and self.text_encoder.learning_rate != "loop":
            raise ValueError('prodigy finds one rate for all weights: leave text_encoder.learning_rate at "loop"')
        return self

    def rates(self) -> dict[str, float]:
        """Of parameters that learn at a rate of their own: how their names begin, and that rate over the loop's."""
        rate = self.text_encoder.learning_rate
        return {} if rate == "loop" else {OF_TEXT_ENCODERS: rate / self.loop.optimizer.learning_rate}

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        wanted = [name for name in ("shard_base", "compile") if getattr(self.loop, name)]
        if self.base.is_special and wanted:
            raise ValueError(
                f"loop.{wanted[0]} takes weights that lie there as they are computed with: leave it false, or leave "
                'base.storage at "precision" and base.stream false'
            )
        return self

    def class_data(self, folder: Path, media: Media) -> DataConfig:
        """Clips of the class in a folder: of the same size as the others, without trigger word, and none held out."""
        own = {"folder": folder, "media": media, "default_caption": self.prior.caption}
        return self.data.model_copy(update=own | {"trigger": "", "repeats": {}, "held_out": 0})
