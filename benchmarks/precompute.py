"""Clips into latents: decoded ahead of the encoder and written behind it, against one by one as CogVideo's ``finetune/``.

The peer's loop is that of ``finetune/datasets/t2v_dataset.py``, in a loader of batch 1 without workers: decode the whole file,
resize, encode, write, next. Both have the published VAE's widths with random weights, in the precision that the device is
fast in, and the same films of 49 frames of 720x480 that are made into 9 frames of 96x64 on a CPU, 49 of 720x480 on an
accelerator.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from reelora.components import to_video
from reelora.data import CacheSettings, ClipSettings, complete_cache, list_clips, missing_entries, plan_clips

from .side_by_side import Row

__all__ = ["run"]

NUM_CLIPS, NUM_FRAMES, HEIGHT, WIDTH, FPS = 8, 49, 480, 720, 8
HAS_CUDA = torch.cuda.is_available()
DEVICE, DTYPE = (torch.device("cuda"), torch.bfloat16) if HAS_CUDA else (torch.device("cpu"), torch.float32)
CLIP = ClipSettings(num_frames=49 if HAS_CUDA else 9, height=480 if HAS_CUDA else 64, width=720 if HAS_CUDA else 96, fps=FPS)
SETTINGS = CacheSettings(clip=CLIP, vae_fingerprint="random", text_fingerprint="none", num_text_tokens=1)
BATCH_SIZE, WORKERS = (4, 8) if HAS_CUDA else (1, 1)


@dataclass
class Encoder:
    """The VAE's encoder, and the seconds that it was at work."""

    vae: Any
    busy: float = 0.0

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        started = time.perf_counter()
        with torch.no_grad():
            posterior = self.vae.encode(to_video(frames.to(DEVICE)).to(DTYPE)).latent_dist
            parts = {"latent_mean": posterior.mean, "latent_std": posterior.std}
            found = {name: rearrange(part.float().cpu(), "b c f h w -> b f c h w") for name, part in parts.items()}
        self.busy += time.perf_counter() - started
        return found


def run() -> Iterator[Row]:
    """Seconds for all clips, and how long the encoder waits of them."""
    torch.manual_seed(0)
    vae = _vae().to(DEVICE, DTYPE).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as name:
        clips = Path(name) / "clips"
        clips.mkdir()
        for index in range(NUM_CLIPS):
            _write_film(clips / f"{index}.mp4", seed=index)
            (clips / f"{index}.txt").write_text("a film")
        Encoder(vae)(_read_whole(clips / "0.mp4"))  # the first call of all is slower
        ours, theirs = Encoder(vae), Encoder(vae)
        our_seconds = _ours(clips, Path(name) / "cache", ours)
        their_seconds = _theirs(clips, Path(name) / "latents", theirs)
        size = f"{NUM_CLIPS} clips of {SETTINGS.clip} on {DEVICE.type}"
        yield Row(what=f"precompute {size}", unit="s", ours=our_seconds, theirs=their_seconds)
        idle = [100 * (1 - done.busy / took) for done, took in ((ours, our_seconds), (theirs, their_seconds))]
        yield Row(what="of it the encoder waits", unit="%", ours=idle[0], theirs=idle[1])
        _write_film(clips / "0.mp4", seed=99)
        what = "one clip changed; theirs goes by names and must be begun anew"
        yield Row(what=what, unit="s", ours=_ours(clips, Path(name) / "cache", Encoder(vae)), theirs=their_seconds)


def _vae() -> Any:
    return AutoencoderKLCogVideoX.from_config({})


def _ours(clips: Path, cache: Path, encoder: Encoder) -> float:
    started = time.perf_counter()
    plan = plan_clips(list_clips(clips), SETTINGS, cache)
    complete_cache(
        plan,
        missing_entries(plan, cache, SETTINGS, is_read_whole=True),
        cache,
        SETTINGS,
        make_video_encoder=lambda: encoder,
        make_prompt_encoder=lambda: lambda captions: {"prompt_states": torch.zeros(len(captions), 1, 4)},
        video_batch_size=BATCH_SIZE,
        num_workers=WORKERS,
    )
    return time.perf_counter() - started


def _theirs(clips: Path, folder: Path, encoder: Encoder) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    started = time.perf_counter()
    for path in sorted(clips.glob("*.mp4")):
        latents = encoder(_read_whole(path))["latent_mean"]
        save_file({"encoded_video": latents[0].contiguous()}, folder / f"{path.stem}.safetensors")
    return time.perf_counter() - started


def _read_whole(path: Path) -> Tensor:
    """Every frame of a file at the wanted size, then the first ones."""
    with av.open(str(path)) as container:
        pictures = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])
    planes = rearrange(pictures, "t h w c -> t c h w")
    clip = SETTINGS.clip
    small = interpolate(planes, size=(clip.height, clip.width), mode="bilinear", antialias=True)
    return rearrange(small, "t c h w -> 1 t h w c")[:, : clip.num_frames]


def _write_film(path: Path, *, seed: int) -> None:
    """Coloured blocks that move, with a little noise: about what a camera's file costs to decode."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        blocks = np.kron(rng.integers(0, 200, (HEIGHT // 40, WIDTH // 40, 3)), np.ones((40, 40, 1), int))
        for index in range(NUM_FRAMES):
            noisy = np.roll(blocks, 5 * index, axis=1) + rng.integers(0, 20, blocks.shape)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
