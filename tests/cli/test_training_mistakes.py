"""What goes wrong with a training run, as whoever types the command meets it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from films import write_film
from safetensors.torch import load_file, save_file
from stills import SIDE, draw_stills, save_refiner, save_still_model

from reelora.recipes.demo.scenes import write_stars
from reelora.train import read_metrics

SMALL = ["--device", "cpu", "--set", "lora.rank=4", "--set", "lora.alpha=2", "--set", "tensorboard=false"]


@pytest.fixture
def train(reelora, clips, tmp_path):
    """Runs ``reelora train`` over the clips for some steps, with settings over it."""

    def run(*settings, steps=2, data=clips, options=()):
        pairs = [part for setting in settings for part in ("--set", setting)]
        command = ["train", "--data", data, "--output", tmp_path / "run", "--steps", steps]
        return reelora(*command, *SMALL, *pairs, *options)

    return run


def is_refused(outcome, *hints):
    """The only line of the error, or the lines of a list of differences."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    message = outcome.err[outcome.err.index("reelora: ") :]
    assert all(hint in message for hint in hints), message
    return message


def run_files(tmp_path):
    return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def damage(path):
    """Flip one bit of the last values."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def test_of_one_clip_none_can_be_held_out_and_without_that_it_can_be_learned(reelora, train, tmp_path):
    write_film(tmp_path / "one" / "a.mp4", 17)
    (tmp_path / "one" / "a.txt").write_text("a film")
    assert reelora("precompute", "--data", tmp_path / "one").code == 0
    is_refused(train(data=tmp_path / "one"), "Set data.held_out to at most 0")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert train("data.held_out=0", data=tmp_path / "one").code == 0


def test_a_batch_larger_than_the_data_set_holds_clips_twice_and_this_is_said(train):
    outcome = train("loop.batch_size=7", "data.held_out=0")
    assert outcome.code == 0
    assert "17x64x64 has fewer clips than a batch of 7, which then holds some twice" in outcome.err
    assert "fewer clips" not in train("loop.batch_size=3", "data.held_out=0", steps=1, options=["--output", "other"]).err


def test_a_clip_shorter_than_its_bucket_is_named_and_may_be_left_out(train, clips, tmp_path):
    write_film(clips / "1.mp4", 5)
    is_refused(
        train(), "1 of 3 clips", "1.mp4", "5 frames", "17 are wanted", "at least 9", "data.min_share", "data.skip_refused"
    )
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    assert train("data.skip_refused=true").code == 0


@pytest.mark.parametrize(
    ("setting", "hints"),
    [
        ("data.height=720", ("multiple of 16 and at most 64", "try 64")),
        ("data.num_frames=18", ("8n + 1", "try 17")),
        ("data.buckets=['17x64x60']", ("data.buckets", "60", "try 48 or 64")),
        ("precision=fp16", ("range is too small for gradients", "CogVideoX-5B", "Use bf16 or fp32")),
        ("lora.target_modules=['to_x']", ("no module is called 'to_x'", "did you mean")),
        ("text_encoder.rank=4", ("is no Stable Diffusion", "Leave it at 0")),
    ],
)
def test_settings_that_contradict_the_model_are_refused_before_any_work(train, clips, tmp_path, setting, hints):
    is_refused(train(setting), *hints)
    assert not (clips / ".reelora").exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def other_model(model):
    """The pocket model with one weight changed."""
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})
    return model


def test_a_folder_of_another_run_lists_every_difference_and_stays_as_it_is(train, clips, other_model, tmp_path):
    assert train().code == 0
    before = run_files(tmp_path)
    write_film(clips / "9.mp4", 17, noise=9)
    (clips / "9.txt").write_text("one more")
    settings = ["lora.rank=8", "loop.seed=3", "loop.optimizer.learning_rate=0.01"]
    outcome = train(*settings, steps=4, options=["--model", other_model])
    message = is_refused(outcome, "belongs to another run", "Choose another output folder", "Nothing was changed")
    differences = [line.split(":")[0].split(" (")[0] for line in message.splitlines() if line.startswith("- ")]
    assert differences == ["- base", "- data", "- loop.optimizer.learning_rate", "- loop.seed", "- lora.rank"]
    assert "lora.rank: it has 4, this run 8" in message
    assert run_files(tmp_path) == before


HOLDER = """
import sys, time
from pathlib import Path
from reelora.train import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(200)
"""


def test_an_output_folder_in_use_by_a_running_process_is_refused_until_it_ends(train, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        is_refused(train(), str(tmp_path / "run"), "in use by another run", "--output")
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        process.kill()
    assert train().code == 0


def test_a_damaged_entry_of_the_cache_is_named_and_precompute_makes_it_anew(reelora, train, clips):
    assert reelora("precompute", "--data", clips).code == 0
    entry = min((clips / ".reelora" / "latents").iterdir())
    damage(entry)
    is_refused(train(steps=6), str(entry), "not those that were written", "`reelora precompute`")
    assert "1 encoded now, 2 found" in reelora("precompute", "--data", clips).err
    assert train(steps=6).code == 0


def test_a_truncated_entry_of_the_cache_is_made_anew_by_the_run(reelora, train, clips):
    assert reelora("precompute", "--data", clips).code == 0
    entry = min((clips / ".reelora" / "latents").iterdir())
    entry.write_bytes(entry.read_bytes()[:100])
    outcome = train()
    assert outcome.code == 0
    assert "1 encoded now, 2 found" in outcome.err


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_on_request_the_one_before_is_used(train, tmp_path, name):
    assert train("loop.checkpoint_every=2", steps=4).code == 0
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    damaged = tmp_path / "run" / "checkpoints" / "step-000004"
    damage(damaged / name)
    before = run_files(tmp_path)
    is_refused(train("loop.checkpoint_every=2", steps=6), str(damaged), "Delete it", "loop.skip_damaged_checkpoints = true")
    assert run_files(tmp_path) == before
    outcome = train("loop.checkpoint_every=2", "loop.skip_damaged_checkpoints=true", steps=6)
    assert outcome.code == 0
    said = " ".join(outcome.err.split())
    assert f"damaged {damaged}, which is passed over" in said
    assert "goes on after step 2 of 6" in said
    mended = load_file(damaged / "state.safetensors")
    kept = load_file(tmp_path / "kept" / "checkpoints" / "step-000004" / "state.safetensors")
    assert mended.keys() == kept.keys()
    assert all(torch.equal(mended[key], kept[key]) for key in kept)
    assert json.loads((damaged / "manifest.json").read_text())["step"] == 4


def test_a_learning_rate_that_explodes_on_the_demo_is_stopped_with_advice(train, tmp_path):
    write_stars(tmp_path / "stars", count=6, seed=0)
    outcome = train(
        "loop.optimizer.learning_rate=1", "loop.optimizer.warmup_steps=0", "data.held_out=0", steps=60, data=tmp_path / "stars"
    )
    is_refused(outcome, "Step 1", "star-", "Lower loop.optimizer.learning_rate (now 1)", "There is no checkpoint yet")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 30
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


STILLS = ["--set", "data.media=images", "--set", f"data.height={SIDE}", "--set", f"data.width={SIDE}"]


@pytest.mark.parametrize("verb", ["precompute", "train", "generate"])
def test_the_refiner_of_sdxl_is_named_and_refused(reelora, tmp_path, verb):
    model = save_refiner(tmp_path / "refiner")
    data = ["--data", draw_stills(tmp_path / "stills"), *STILLS]
    output = ["--output", tmp_path / ("a.png" if verb == "generate" else "run")]
    before = set(tmp_path.rglob("*"))
    options = {"precompute": data, "train": [*data, *output], "generate": ["a red square", *output]}
    outcome = reelora(verb, "--model", model, *options[verb])
    is_refused(outcome, "no text_encoder", "refiner of SDXL", "stabilityai/stable-diffusion-xl-base-1.0")
    assert set(tmp_path.rglob("*")) == before


def test_the_unet_of_the_refiner_in_a_folder_of_the_base_is_refused(reelora, tmp_path):
    model = save_still_model("SDXL", tmp_path / "model")
    shutil.rmtree(model / "unet")
    shutil.move(save_refiner(tmp_path / "refiner") / "unet", model / "unet")
    outcome = reelora(
        "train", "--model", model, "--data", draw_stills(tmp_path / "stills"), *STILLS, "--output", tmp_path / "run"
    )
    is_refused(outcome, "5 numbers of a picture", "SDXL is told 6", "refiner", "of one SDXL base model")
    assert not (tmp_path / "run").exists()
