"""Prior preservation with clips of the class that the base makes itself."""

import json
import os
from pathlib import Path

import pytest
import torch
from films import write_film
from PIL import Image
from rights import folder_for_strangers, only_to_read
from stills import SIDE, draw_stills, save_still_model
from tiny_models import build_pipeline
from watching import Watching

from reelora import recipes
from reelora.data import CachedClips, made_clips, plan_pruning
from reelora.errors import ConfigError
from reelora.generate import read_video_metadata
from reelora.recipes import Silent, TrainConfig
from reelora.recipes.class_clips import class_data
from reelora.train import read_metrics


@pytest.fixture(scope="module")
def video_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "5B"
    build_pipeline("5B").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def still_model(tmp_path_factory):
    return save_still_model("SDXL", tmp_path_factory.mktemp("model") / "SDXL")


@pytest.fixture
def films(tmp_path):
    for index in range(2):
        write_film(tmp_path / "clips" / f"{index}.mp4", 9, noise=index)
        (tmp_path / "clips" / f"{index}.txt").write_text("a red star")
    return tmp_path / "clips"


@pytest.fixture
def config_of(tmp_path):
    def make(model, clips, output="run", *, data=None, **prior):
        settings = {
            "model": str(model),
            "output": tmp_path / output,
            "device": "cpu",
            "tensorboard": False,
            "data": {"folder": clips, "held_out": 0, **(data or {})},
            "prior": {"caption": "a star", "count": 2, "steps": 2, **prior},
            "lora": {"rank": 2, "alpha": 2},
            "loop": {"steps": 1, "evaluate_every": 0},
        }
        return TrainConfig.of(settings)

    return make


class Lines(Silent):
    """What is said of the class, and after how many clips Ctrl-C comes."""

    def __init__(self, stop_after=99):
        self.said, self._stop_after = [], stop_after

    def say(self, line):
        self.said += [line.partition(": ")[2].partition(" in ")[0]] if line.startswith("class") else []

    def progress(self, task, done, total, note=""):
        if task == "class clips" and done == self._stop_after:
            raise KeyboardInterrupt


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def made_in(config):
    return sorted(path for path in (config.data.cache_folder / ".made").rglob("0*") if path.is_file())


def test_videos_of_the_class_are_made_once_and_kept(video_model, films, config_of):
    lines = Lines()
    first = config_of(video_model, films)
    recipes.train(first, listener=lines)
    before = {path: path.read_bytes() for path in made_in(first)}
    assert [path.name for path in before] == ["000000.mp4", "000001.mp4"]
    assert len(set(before.values())) == 2
    assert [read_video_metadata(path)["seed"] for path in before] == [0, 1]
    more = config_of(video_model, films, "more", count=3)
    recipes.train(more, listener=lines)
    assert lines.said == ["2 made now, 0 found", "1 made now, 2 found"]
    assert {path: path.read_bytes() for path in made_in(more)[:2]} == before
    assert len(made_in(more)) == 3


def test_pictures_of_the_class_are_made_by_stable_diffusion(still_model, config_of, tmp_path):
    data = {"media": "images", "height": SIDE, "width": SIDE}
    config = config_of(still_model, draw_stills(tmp_path / "stills"), data=data, steps=4)
    assert recipes.train(config, listener=Silent()).result.is_complete
    assert [size_of(path) for path in made_in(config)] == [(SIDE, SIDE)] * 2
    rows = [json.loads(line) for line in (made_in(config)[0].parent / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": f"00000{index}.png", "text": "a star"} for index in range(2)]


def test_killed_half_way_the_rest_is_made(video_model, films, config_of):
    config, lines = config_of(video_model, films, count=3), Lines(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        recipes.train(config, listener=lines)
    before = {path: path.stat().st_mtime_ns for path in made_in(config)}
    assert len(before) == 2
    again = Lines()
    assert recipes.train(config, listener=again).result.is_complete
    assert again.said == ["1 made now, 2 found"]
    assert {path: path.stat().st_mtime_ns for path in made_in(config) if path in before} == before


def test_clips_that_are_found_again_count_as_used(video_model, films, config_of):
    config, cpu = config_of(video_model, films), torch.device("cpu")
    class_data(config, device=cpu, listener=Silent())
    cache = config.data.cache_folder
    for path in (*made_in(config), *made_in(config)[0].parent.glob("[fm]*")):
        os.utime(path, (0, 0))
    (made,) = made_clips(cache)
    assert (made.used_at, made.num_clips) == (0, 2)
    assert [file.path for file in plan_pruning(cache, days=7).files] == [made.folder]
    class_data(config, device=cpu, listener=Silent())
    assert plan_pruning(cache, days=7).files == ()


def test_clips_that_are_all_there_are_used_without_writing(config_of):
    lines, cpu = Lines(), torch.device("cpu")
    with folder_for_strangers() as folder:
        config = config_of("pocket", folder)
        class_data(config, device=cpu, listener=lines)
        with only_to_read(folder):
            class_data(config, device=cpu, listener=lines)
            with pytest.raises(PermissionError):
                class_data(config_of("pocket", folder, count=3), device=cpu, listener=lines)
    assert lines.said[:2] == ["2 made now, 0 found", "0 made now, 2 found"]


@pytest.mark.parametrize("change", [{"caption": "a circle"}, {"seed": 7}, {"steps": 3}])
def test_what_decides_the_clips_decides_where_they_are(change, video_model, films, config_of):
    lines = Lines()
    for prior in ({}, change):
        recipes.train(config_of(video_model, films, f"run{len(lines.said)}", **prior), listener=lines)
    assert lines.said == ["2 made now, 0 found"] * 2
    assert len({path.parent for path in made_in(config_of(video_model, films))}) == 2


def test_they_are_seen_beside_the_clips_and_a_run_with_others_is_refused(video_model, films, config_of):
    with_class = config_of(video_model, films)
    recipes.train(with_class, listener=Silent())
    plain = config_of(video_model, films, "plain", count=0)
    recipes.train(plain, listener=Silent())
    one, other = (
        next(row["loss"] for row in read_metrics(config.output / "metrics.jsonl") if "loss" in row)
        for config in (with_class, plain)
    )
    assert one > 1.2 * other  # the class counts once as much as the clips
    with pytest.raises(ConfigError, match="prior"):
        recipes.train(config_of(video_model, films, seed=7), listener=Silent())


def test_the_base_that_made_them_is_not_in_memory_while_training(still_model, config_of, alive, tmp_path):
    data = {"media": "images", "height": SIDE, "width": SIDE}
    listener = Watching(alive)
    recipes.train(config_of(still_model, draw_stills(tmp_path / "stills"), data=data, steps=4), listener=listener)
    assert listener.found == [{"unet"}]


def test_a_class_that_cannot_be_made_is_refused_before_any_work(films, config_of, tmp_path):
    folder = tmp_path / "i2v"
    build_pipeline("5B-I2V").save_pretrained(folder)
    config = config_of(folder, films)
    with pytest.raises(ConfigError, match=r"makes videos of pictures.*prior\.folder"):
        recipes.train(config, listener=Silent())
    assert not config.output.exists()
    assert not (films / ".reelora").exists()


def test_clips_of_several_sizes_have_no_class_of_one(films, config_of):
    config = config_of("pocket", films, data={"buckets": "auto"})
    with pytest.raises(ConfigError, match=r"data\.buckets names .* sizes, but clips of the class"):
        recipes.train(config, listener=Silent())
    assert not (films / ".reelora").exists()


@pytest.mark.parametrize(
    ("prior", "sentence"),
    [({"caption": ""}, "no caption to make them of"), ({"folder": "class"}, "set one of them")],
)
def test_contradictory_settings_are_named(prior, sentence, films, config_of):
    with pytest.raises(ConfigError, match=sentence):
        config_of("pocket", films, **prior)


def test_clips_of_the_class_share_the_cache(video_model, films, config_of):
    config = config_of(video_model, films)
    recipes.train(config, listener=Silent())
    sets = sorted((config.data.cache_folder / "sets").iterdir())
    assert sorted(len(CachedClips(path)) for path in sets) == [2, 2]
    assert not list(Path(films).rglob(".made/*/.reelora"))
