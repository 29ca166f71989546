"""The demo, small; its figures are held by the slow test."""

import re

import numpy as np
import pytest

from reelora import recipes
from reelora.adapters import read_adapter
from reelora.generate import read_video_metadata
from reelora.pocket import SHAPES, draw, judge
from reelora.pocket.clips import Combination
from reelora.recipes import DemoPlan, Silent
from reelora.recipes.demo.scenes import TRIGGER, ask_for_known, ask_for_stars, write_reminders, write_stars
from reelora.train import read_metrics, read_verdicts

SMALL = DemoPlan(num_clips=4, num_held_out=2, num_reminders=3, num_videos=5, steps=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return recipes.demo(tmp_path_factory.mktemp("demo") / "out", device="cpu", seed=0, listener=Silent(), plan=SMALL)


def test_it_leaves_what_it_promises(small):
    names = {path.name for path in small.folder.iterdir()}
    assert {
        "adapter.safetensors",
        "before.mp4",
        "after.mp4",
        "report.html",
        "metrics.jsonl",
        "config.toml",
        "clips",
        "reminders",
    } <= names


def test_the_report_needs_no_other_file_and_shows_figures_and_pictures(small):
    page = (small.folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:video/mp4;base64,") == 2
    assert "<svg" in page
    assert all(line.split(".")[0][:40] in page for line in small.lines()[:1])


def test_it_ends_with_five_lines_and_the_next_command(small):
    lines = small.lines()
    assert len(lines) == 5
    assert "reelora generate" in lines[-1]
    assert str(small.folder / "adapter.safetensors") in lines[-1]


def test_before_and_after_have_the_same_prompts_and_seeds(small):
    before, after = (read_video_metadata(small.folder / f"{name}.mp4")["clips"] for name in ("before", "after"))
    assert [(c["prompt"], c["seed"]) for c in before] == [(c["prompt"], c["seed"]) for c in after]
    assert all(c["adapters"] == [] for c in before)
    assert all(len(c["adapters"]) == 1 for c in after)


def test_the_adapter_says_where_it_comes_from(small):
    adapter = read_adapter(small.folder / "adapter.safetensors")
    assert adapter.provenance["trigger_words"] == TRIGGER
    assert {"base_shapes", "base_values", "data_hash", "version", "config_hash"} <= adapter.provenance.keys()
    assert adapter.spec is not None
    assert adapter.spec.scale == 1.0


def test_it_is_measured_on_stars_that_are_never_learned_from(small):
    rows = read_metrics(small.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 2]
    assert [verdict.num_clips for verdict in read_verdicts(small.folder)] == [2, 2]
    assert "Does it learn?" in (small.folder / "report.html").read_text()


def test_questions_never_repeat_a_clip_of_the_lesson_and_are_the_same_every_time():
    assert ask_for_stars(count=20, seed=0) == ask_for_stars(count=20, seed=0)
    assert ask_for_stars(count=20, seed=0).prompts != ask_for_stars(count=20, seed=1).prompts
    assert all(TRIGGER in prompt for prompt in ask_for_stars(count=20, seed=0).prompts)
    assert all(TRIGGER not in prompt for prompt in ask_for_known(count=20, seed=0).prompts)
    assert all(want.shape == "star" for want in ask_for_stars(count=20, seed=0).wanted)


def test_no_star_is_asked_for_that_the_lesson_shows(tmp_path):
    write_stars(tmp_path, count=24, seed=0)
    taught = {path.read_text().strip() for path in tmp_path.glob("*.txt")}
    assert len(taught) == 24
    assert not taught & set(ask_for_stars(count=20, seed=0).prompts)


def test_the_clips_of_the_lesson_show_stars_and_are_the_same_every_time(tmp_path):
    from reelora.data import read_clip

    for name in ("one", "two"):
        write_stars(tmp_path / name, count=3, seed=0)
    for path in sorted((tmp_path / "one").glob("star-*.mp4")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        frames, _ = read_clip(path, num_frames=17, height=64, width=64, fps=8)
        assert judge(frames.numpy()).shape == "star"
        assert TRIGGER in path.with_suffix(".txt").read_text()


def test_reminders_show_what_the_model_knows_in_its_own_words(tmp_path):
    write_reminders(tmp_path, count=12, seed=0)
    captions = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert len(captions) == len(list(tmp_path.glob("*.mp4"))) == 12
    assert all(any(shape in caption for shape in SHAPES) and TRIGGER not in caption for caption in captions)


def test_star_clips_are_drawn_as_any_other():
    from reelora.pocket import sample_scene

    scene = sample_scene(np.random.default_rng(0), Combination("star", "red", "grows"))
    assert judge(draw(scene)).motion == "grows"


@pytest.mark.slow
def test_the_demo_meets_its_figures(tmp_path):
    outcome = recipes.demo(tmp_path / "demo", device="cpu", seed=0, listener=Silent())
    before, after = outcome.stars.shares()["shape"]
    assert before < 0.1
    assert after > 0.8
    assert all(now >= was - 0.2 for was, now in outcome.known.shares().values()), outcome.known.shares()
    verdicts = read_verdicts(outcome.folder)[1:]
    assert {verdict.finding for verdict in verdicts} == {"learning"}
    assert min(verdict.gain.low for verdict in verdicts) > 0.3  # a statement that needs no second look
    assert outcome.seconds < 360
