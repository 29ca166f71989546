"""Scores of the pocket model: the judge's own confusion, the VAE's fidelity, and how many prompts come out right."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

from .clips import BACKGROUNDS, COLOURS, MOTIONS, OUTLINES, Combination, draw, known_combinations, sample_scene
from .judge import Verdict, judge
from .train_vae import psnr, to_video

__all__ = ["GUIDANCE", "STEPS", "confusion", "generate_clips", "prompts", "scores", "vae_figures"]

STEPS = 20
GUIDANCE = 4.0
_AT_ONCE = 20


def confusion(*, per_shape: int = 200, seed: int = 7) -> dict[str, Counter]:
    """What the judge calls drawn clips of each shape; ``colour`` and ``motion`` count what it gets wrong there."""
    rng = np.random.default_rng(seed)
    table = {}
    for shape in OUTLINES:
        seen = table[shape] = Counter()
        for _ in range(per_shape):
            wanted = Combination(shape, str(rng.choice(list(COLOURS))), str(rng.choice(MOTIONS)))
            verdict = judge(draw(sample_scene(rng, wanted)))
            seen[verdict.shape] += 1
            seen["colour"] += verdict.colour != wanted.colour
            seen["motion"] += verdict.motion != wanted.motion
    return table


def vae_figures(vae: AutoencoderKLCogVideoX, *, num_clips: int = 64, seed: int = 8) -> dict[str, float]:
    """Of clips of held-out combinations, encoded to the posterior mean and decoded: mean PSNR in dB, and what the judge sees.

    Where the judge errs here, it will on every video that the model makes.
    """
    rng = np.random.default_rng(seed)
    combinations = known_combinations(held_out=True)
    scenes = [sample_scene(rng, combinations[i % len(combinations)]) for i in range(num_clips)]
    values, verdicts = [], []
    for first in range(0, num_clips, 16):
        video = to_video(np.stack([draw(scene) for scene in scenes[first : first + 16]]))
        with torch.inference_mode():
            posterior = vae.encode(video.to(vae.device, vae.dtype), return_dict=False)[0]
            drawn = vae.decode(posterior.mode(), return_dict=False)[0].cpu().float().clamp(-1, 1)
        values.append(psnr(drawn, video))
        verdicts += [judge(clip) for clip in ((drawn + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()]
    return {"psnr_db": float(torch.cat(values).mean()), **scores([scene.combination for scene in scenes], verdicts)}


def prompts(*, held_out: bool, count: int, seed: int = 9) -> list[tuple[Combination, str]]:
    """``count`` combinations in turn, shuffled, with their captions on a random background."""
    rng = np.random.default_rng([seed, held_out])
    combinations = known_combinations(held_out=held_out)
    order = rng.permutation(len(combinations))
    chosen = [combinations[order[i % len(order)]] for i in range(count)]
    grounds = rng.choice(list(BACKGROUNDS), count)
    return [
        (c, f"a {c.colour} {c.shape} {c.motion} on a {ground} background") for c, ground in zip(chosen, grounds, strict=True)
    ]


def generate_clips(
    pipeline: CogVideoXPipeline, texts: Sequence[str], *, first_seed: int, steps: int = STEPS, text_length: int | None = None
) -> Iterator[np.ndarray]:
    """uint8 clips ``(t, h, w, 3)`` of the texts, in batches; the i-th has the seed ``first_seed + i``."""
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(texts), _AT_ONCE):
        batch = list(texts[first : first + _AT_ONCE])
        seeds = [torch.Generator().manual_seed(first_seed + first + i) for i in range(len(batch))]
        frames = pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=seeds,
            max_sequence_length=text_length or pipeline.transformer.config.max_text_seq_length,
            output_type="np",
            return_dict=False,
        )[0]
        yield from np.rint(np.nan_to_num(frames) * 255).astype(np.uint8)


def scores(wanted: Sequence[Combination], verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Share of clips with the right colour, shape and motion."""
    pairs = list(zip(wanted, verdicts, strict=True))
    return {
        part: sum(getattr(verdict, part) == getattr(want, part) for want, verdict in pairs) / len(pairs)
        for part in ("colour", "shape", "motion")
    }


def score_prompts(pipeline: CogVideoXPipeline, *, held_out: bool, count: int, first_seed: int, **options) -> dict[str, float]:
    """Generate ``count`` prompts and judge them."""
    wanted, texts = zip(*prompts(held_out=held_out, count=count), strict=True)
    clips = generate_clips(pipeline, texts, first_seed=first_seed, **options)
    return scores(wanted, (judge(clip) for clip in clips))
