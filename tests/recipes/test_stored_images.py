"""Latents of the pictures that image-to-video models are shown: made once, kept in the cache, named by what they are of."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from films import write_film
from tiny_models import build_pipeline
from watching import Watching

from reelora import recipes
from reelora.components import encode_image, load_components, to_video
from reelora.data import CachedClips, StoredImages, plan_pruning, read_first_frame, verify_cache
from reelora.errors import DataError
from reelora.recipes import Silent, TrainConfig
from reelora.recipes.conditions import Kind, precompute_kind
from reelora.train import noisy_image
from reelora.train.draws import generator_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipeline = build_pipeline("5B-I2V")
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    folder = tmp_path_factory.mktemp("model") / "i2v"
    CogVideoXImageToVideoPipeline(**{name: pipeline.components[name] for name in names}).save_pretrained(folder)
    return folder


@pytest.fixture
def config(model, tmp_path):
    for index in range(3):
        write_film(tmp_path / "clips" / f"{index}.mp4", 18, noise=index, fps=16)
        (tmp_path / "clips" / f"{index}.txt").write_text("a red star")
    settings = {
        "model": str(model),
        "output": tmp_path / "run",
        "device": "cpu",
        "tensorboard": False,
        "data": {"folder": tmp_path / "clips", "held_out": 1, "fps": 16},
        "lora": {"rank": 2, "alpha": 2},
        "image": {"draws": 2},
        "loop": {"steps": 2, "evaluate_every": 0},
    }
    return TrainConfig.of(settings)


def precomputed(config, listener) -> Kind:
    plan = recipes.plan_data(config.model, config.data, listener=listener)
    return precompute_kind(plan, config, device=CPU, listener=listener, is_read_whole=True)[1]


def stored(kind, *, count=2, seed=0):
    return StoredImages(kind.clips, count=count, seed=seed)


class Interrupting(Silent):
    """Presses Ctrl-C after some pictures."""

    def progress(self, task, done, total, note=""):
        if task == "images" and done == 2:
            raise KeyboardInterrupt


class Lines(Silent):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said += [line] if line.startswith("images") else []


def files(kind):
    return sorted((kind.clips.folder / "images").iterdir())


def test_every_draw_is_the_first_picture_with_noise_of_its_own(config):
    """The noise of CogVideo's training, drawn for the clip by its content; count and seed are obeyed."""
    kind = precomputed(config, Silent())
    images = stored(kind)
    vae = load_components(config.model, roles=["vae"])
    for clip in kind.planned:
        draws = images(clip.name)
        assert draws.shape == (2, 4, 4, 4)
        assert not torch.equal(*draws)
        for number, draw in enumerate(draws):
            noise = generator_for(0, kind.clips.latents_keys[clip.name], "stored image", number)
            picture = noisy_image(to_video([read_first_frame(clip)]), noise)
            assert torch.equal(draw[None, None], encode_image(vae, picture).sample(noise))
    assert stored(kind, seed=1).missing() == stored(kind, count=3).missing() == kind.clips.sources


def test_a_second_start_finds_them_and_loads_no_vae(config, alive):
    lines = Lines()
    precomputed(config, lines)
    listener = Watching(alive)
    assert recipes.train(config, listener=listener).result.is_complete
    assert listener.found == [{"transformer"}] * 2
    again = precomputed(config, lines)
    assert [line.partition(": ")[2].partition(" in ")[0] for line in lines.said] == [
        "3 made now, 0 found",
        "0 made now, 3 found",
    ]
    assert len(files(again)) == 3


def test_killed_half_way_it_goes_on_and_makes_only_the_rest(config):
    with pytest.raises(KeyboardInterrupt):
        precomputed(config, Interrupting())
    folder = config.data.cache_folder / "images"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 2
    kind = precomputed(config, Silent())
    assert len(files(kind)) == 3
    assert {path: path.stat().st_mtime_ns for path in files(kind) if path in before} == before


def test_a_renamed_film_keeps_its_draws_and_a_changed_one_gets_others(config):
    kind = precomputed(config, Silent())
    draws = stored(kind)("0.mp4").clone()
    folder = Path(config.data.folder)
    for suffix in (".mp4", ".txt"):
        (folder / f"0{suffix}").rename(folder / f"renamed{suffix}")
    write_film(folder / "1.mp4", 18, noise=9, fps=16)
    after = precomputed(config, Silent())
    assert torch.equal(stored(after)("renamed.mp4"), draws)
    assert len(files(after)) == 4


def test_damaged_draws_are_named_and_made_anew(config):
    kind = precomputed(config, Silent())
    broken = files(kind)[0]
    raw = bytearray(broken.read_bytes())
    raw[-1] ^= 1
    broken.write_bytes(raw)
    assert [damage.path for damage in verify_cache(kind.clips.folder)] == [broken]
    with pytest.raises(DataError, match="is damaged"):
        _ = [stored(kind)(name) for name in kind.clips.sources]
    assert verify_cache(precomputed(config, Silent()).clips.folder) == []


def test_draws_are_pruned_with_their_clips_and_not_before(config):
    kind = precomputed(config, Silent())
    assert plan_pruning(kind.clips.folder, days=1).files == ()
    shutil.rmtree(kind.clips.folder / "sets")
    (kind.clips.folder / "sets").mkdir()
    gone = {file.path for file in plan_pruning(kind.clips.folder, days=1).files}
    assert set(files(kind)) <= gone


def test_a_run_sees_the_draws_of_the_cache(config):
    """With other draws in the cache it learns otherwise: they are what it is shown."""
    kind = precomputed(config, Silent())
    recipes.train(config, listener=Silent())
    other = config.model_copy(update={"output": config.output.with_name("other")})
    images = StoredImages(CachedClips(sorted((kind.clips.folder / "sets").iterdir())[0]), count=2, seed=0)
    for path in files(kind):
        path.unlink()
    zeros = lambda frames, clip: torch.zeros(2, 4, 4, 4)  # noqa: E731
    assert images.complete(kind.planned, lambda: zeros, on_progress=lambda done, total, name: None) == 3
    recipes.train(other, listener=Silent())
    files_of_runs = [(run / "adapter.safetensors").read_bytes() for run in (config.output, other.output)]
    assert files_of_runs[0] != files_of_runs[1]


def test_draws_that_are_not_finite_are_refused(config):
    kind = precomputed(config, Silent())
    images = StoredImages(kind.clips, count=1, seed=5)
    with pytest.raises(DataError, match=r"0\.mp4: the latents of its first picture are not finite"):
        images.complete(
            kind.planned, lambda: lambda frames, clip: torch.full((1, 4, 4, 4), torch.nan), on_progress=lambda *told: None
        )
