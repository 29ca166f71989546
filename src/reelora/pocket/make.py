"""Makes the pocket model from nothing: ``python -m reelora.pocket.make FOLDER``.

Runs the stages in order, each resumed where it stopped: VAE, encoding, text encoder with transformer, export, evaluation.
``docs/pocket.md`` has the curves and figures of the model that is shipped.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from torch import Tensor

from .axes import absorb_axes
from .clips import Scene
from .evaluate import confusion, score_prompts, vae_figures
from .fit import Measure, average_of, placed
from .tokenizer import build_tokenizer
from .train_transformer import Denoiser, build_denoiser, build_scheduler, encode_clips, train_denoiser
from .train_vae import train_vae, trained_vae

__all__ = ["main"]

SEED = 0
_MEASURE_EVERY = 1000
QUESTIONS: Mapping[str, dict] = {
    "known": {"held_out": False, "count": 200},
    "held_out": {"held_out": True, "count": 200},
    "known_padded_to_226": {"held_out": False, "count": 60, "text_length": 226},
}
"""What the finished model is asked, by the name of its row."""


def _assemble(vae: AutoencoderKLCogVideoX, denoiser: Denoiser, dtype: torch.dtype = torch.float32) -> CogVideoXPipeline:
    pipeline = CogVideoXPipeline(build_tokenizer(), denoiser.text_encoder, vae, denoiser.transformer, build_scheduler())
    return pipeline.to(dtype)


def _finished_vae(folder: Path, data: Mapping[str, Any]) -> AutoencoderKLCogVideoX:
    """The VAE that speaks along the axes of the training ``data``."""
    vae = trained_vae(folder / "vae")
    absorb_axes(vae, data["axes"], data["spread"])
    vae.register_to_config(scaling_factor=round(1 / data["std"], 6))
    return vae


def _scorer(folder: Path, data: Mapping[str, Any], device: torch.device) -> Measure:
    def measure(step: int, average: Mapping[str, Tensor]) -> Mapping[str, float]:
        if step % _MEASURE_EVERY:
            return {}
        denoiser = build_denoiser(len(build_tokenizer())).eval()
        denoiser.load_state_dict(average)
        pipeline = _assemble(_finished_vae(folder, data), denoiser, torch.bfloat16).to(device)
        return score_prompts(pipeline, held_out=False, count=60, first_seed=step)

    return measure


def _encode(folder: Path, device: torch.device, report: Callable[[str], None]) -> dict:
    """The latents of the training clips with their scenes, made if they are not there yet."""
    path = folder / "latents.pt"
    if not path.exists():
        vae = placed(trained_vae(folder / "vae"), device)
        report(f"vae: {vae_figures(vae)} on held-out clips")
        encode_clips(vae, path, seed=SEED, report=report)
    return torch.load(path)


def _evaluate(model: Path, device: torch.device, report: Callable[[str], None]) -> dict:
    pipeline = CogVideoXPipeline.from_pretrained(model, dtype=torch.bfloat16).to(device)
    figures: dict = {"vae": vae_figures(pipeline.vae)}
    for name, options in QUESTIONS.items():
        started = time.monotonic()
        figures[name] = score_prompts(pipeline, first_seed=10_000, **options)
        figures[name]["seconds_per_clip"] = round((time.monotonic() - started) / options["count"], 2)
        report(f"{name}: {figures[name]}")
    figures["confusion"] = {shape: dict(seen) for shape, seen in confusion().items()}
    return figures


def main(folder: Path, device: torch.device, report: Callable[[str], None]) -> None:
    """Run every stage that is not done yet; the model lands in ``folder/model``, its figures in ``folder/figures.json``."""
    train_vae(folder / "vae", seed=SEED, device=device, report=report)
    data = _encode(folder, device, report)
    scenes = [Scene(**row) for row in data["scenes"]]
    measure = _scorer(folder, data, device)
    train_denoiser(data["latents"], scenes, folder / "denoiser", seed=SEED, device=device, report=report, measure=measure)
    denoiser = average_of(build_denoiser(len(build_tokenizer())), folder / "denoiser").eval()
    _assemble(_finished_vae(folder, data), denoiser, torch.bfloat16).save_pretrained(folder / "model")
    figures = _evaluate(folder / "model", device, report)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]), torch.device("cuda" if torch.cuda.is_available() else "cpu"), logging.getLogger(__name__).info)
