"""Bad input: one clear message, exit code 2, no traceback, and nothing half-written."""

import json
import os

import pytest
from disk import files_of_at_most
from films import write_film

from reelora.pocket import MODEL


def no_folder(clips, model):
    return ["--data", clips / "nowhere"], "nowhere"


def empty_folder(clips, model):
    for path in clips.iterdir():
        path.unlink()
    return ["--data", clips], "holds no clip"


def truncated_video(clips, model):
    content = (clips / "1.mp4").read_bytes()
    (clips / "1.mp4").write_bytes(content[: len(content) // 2])
    return ["--data", clips], "1.mp4"


def empty_video(clips, model):
    (clips / "1.mp4").write_bytes(b"")
    return ["--data", clips], "1.mp4"


def video_that_is_text(clips, model):
    (clips / "1.mp4").write_text("I am no film")
    return ["--data", clips], "1.mp4"


def video_of_sound_alone(clips, model):
    import av
    import numpy as np

    with av.open(str(clips / "1.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return ["--data", clips], "1.mp4"


def short_video(clips, model):
    write_film(clips / "1.mp4", 5)
    return ["--data", clips], "1.mp4"


def no_caption(clips, model):
    (clips / "1.txt").unlink()
    return ["--data", clips], "1.mp4"


def empty_caption(clips, model):
    (clips / "1.txt").write_text(" \n")
    return ["--data", clips], "1.mp4"


def model_without_its_vae(clips, model):
    index = json.loads((model / "model_index.json").read_text())
    del index["vae"]
    (model / "model_index.json").write_text(json.dumps(index))
    return ["--data", clips, "--model", model], "vae"


def model_of_another_class(clips, model):
    index = json.loads((model / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (model / "model_index.json").write_text(json.dumps(index))
    return ["--data", clips, "--model", model], "AutoencoderTiny"


def model_that_is_truncated(clips, model):
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000])
    return ["--data", clips, "--model", model], "diffusion_pytorch_model.safetensors"


def model_with_a_hostile_header(clips, model):
    path = model / "text_encoder" / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    return ["--data", clips, "--model", model], "model.safetensors"


def model_that_is_nowhere(clips, model):
    return ["--data", clips, "--model", model / "nowhere"], "nowhere"


def folder_that_is_no_model(clips, model):
    return ["--data", clips, "--model", clips], "model_index.json"


def impossible_frames(clips, model):
    return ["--data", clips, "--set", "data.num_frames=16"], "9 or 17"


def impossible_size(clips, model):
    return ["--data", clips, "--set", "data.height=60"], "48 or 64"


def unknown_setting(clips, model):
    return ["--data", clips, "--set", "loop.stepz=3"], "did you mean 'steps'"


def unknown_device(clips, model):
    return ["--data", clips, "--set", "device=gpu"], "write auto, or one of"


DATA_MISTAKES = [
    no_folder,
    empty_folder,
    truncated_video,
    empty_video,
    video_that_is_text,
    video_of_sound_alone,
    short_video,
    no_caption,
    empty_caption,
    model_without_its_vae,
    model_of_another_class,
    model_that_is_truncated,
    model_with_a_hostile_header,
    model_that_is_nowhere,
    folder_that_is_no_model,
    impossible_frames,
    impossible_size,
    unknown_setting,
    unknown_device,
]


def assert_is_clear(outcome, hint):
    assert outcome.code == 2, outcome
    assert hint in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("verb", ["precompute", "train"])
@pytest.mark.parametrize("spoil", DATA_MISTAKES, ids=lambda spoil: spoil.__name__)
def test_a_mistake_in_data_or_model_is_named_and_no_cache_is_left(reelora, clips, model, tmp_path, verb, spoil):
    arguments, hint = spoil(clips, model)
    output = [] if verb == "precompute" else ["--output", tmp_path / "run"]
    assert_is_clear(reelora(verb, *arguments, *output), hint)
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob("*.safetensors.*"))
    assert not (tmp_path / "run" / "adapter.safetensors").exists()


@pytest.mark.parametrize("role", ["transformer", "scheduler"])
def test_a_part_that_only_training_needs_is_missed_by_training(reelora, clips, model, tmp_path, role):
    index = json.loads((model / "model_index.json").read_text())
    del index[role]
    (model / "model_index.json").write_text(json.dumps(index))
    assert_is_clear(reelora("train", "--data", clips, "--model", model, "--output", tmp_path / "run"), role)


PROMPT = "a red circle moves left"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--frames", "16"], "9 or 17"),
        (["--height", "60"], "48 or 64"),
        (["--width", "100"], "64"),
        (["--steps", "0"], "steps"),
        (["--guidance", "0.5"], "guidance"),
        (["--seed", "-1"], "seed"),
        (["--precision", "bf61"], "did you mean 'bf16'"),
        (["--model", "nowhere"], "nowhere"),
        (["--adapter", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--adapter", "a.safetensors=strong"], "'strong'"),
        (["--device", "cuda:99"], "cpu"),
        (["--sampling", "sta"], "'diffusers' or 'sat'"),
        (["--scheduler", "dmp"], "did you mean 'dpm'"),
        (["--sampling", "sat", "--negative-prompt", "grey"], "SAT leads away from zeros"),
        (["--sampling", "sat", "--steps", "1"], "2 to 999 steps"),
        (["--path", "vae"], "vae=CogVideoX-2b/vae"),
        (["--image", "nowhere.png"], "none of its 16 channels is for an image"),
        (["--video", "nowhere.mp4"], "nowhere.mp4"),
        (["--video-strength", "0.5"], "there is no video to begin with"),
        (["--fit", "pad"], "neither an image nor a video"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--like", "nowhere.mp4"], "nowhere.mp4"),
        (["--grid", "sede=1,2"], "did you mean 'seed'"),
        (["--codec", "h256"], "did you mean"),
        (["--crf", "99"], "crf"),
        (["--adapters-as", "fusd"], "adapters_as"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_model_is_loaded(reelora, tmp_path, options, hint):
    assert_is_clear(reelora("generate", PROMPT, "--output", tmp_path / "a.mp4", *options), hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "hint"), [("a.avi", "avi"), ("nowhere/a.mp4", "nowhere"), ("file/a.mp4", "file"), ("there.mp4", "there.mp4")]
)
def test_an_output_that_cannot_be_written_is_refused(reelora, tmp_path, name, hint):
    (tmp_path / "file").write_text("")
    (tmp_path / "there.mp4").write_text("mine")
    assert_is_clear(reelora("generate", PROMPT, "--output", tmp_path / name), hint)
    assert (tmp_path / "there.mp4").read_text() == "mine"


@pytest.mark.parametrize("room_bytes", [0, 700, 20_000])
def test_a_full_disk_is_said_and_the_same_command_goes_on_when_there_is_room(reelora, clips, tmp_path, room_bytes):
    train = ["train", "--data", clips, "--output", tmp_path / "run", "--steps", "1", "--set", "tensorboard=false"]
    with files_of_at_most(room_bytes):
        outcome = reelora(*train)
    assert_is_clear(outcome, str(tmp_path))
    assert not list(tmp_path.rglob("adapter.safetensors"))
    assert reelora(*train).code == 0


@pytest.mark.parametrize("verb", ["train", "demo"])
def test_an_output_folder_that_is_a_file_is_refused(reelora, clips, tmp_path, verb):
    (tmp_path / "run").write_text("mine")
    options = ["--data", clips] if verb == "train" else []
    assert_is_clear(reelora(verb, *options, "--output", tmp_path / "run"), "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_finished_demo_is_never_overwritten(reelora, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    assert_is_clear(reelora("demo", "--output", tmp_path), "finished demo")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_settings_file_is_never_overwritten(reelora, tmp_path):
    path = tmp_path / "run.toml"
    assert reelora("train", "--init", path).code == 0
    assert_is_clear(reelora("train", "--init", path), "run.toml")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      ", b"no safetensors at all"])
def test_a_file_that_is_no_adapter_is_refused(reelora, tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert_is_clear(reelora("inspect", path), "a.safetensors")


def test_an_adapter_of_unknown_strength_can_be_looked_at_but_not_used(reelora, tmp_path):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    name = "transformer.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 192), f"{name}.lora_B.weight": torch.ones(192, 2)}, path)
    assert "unknown" in reelora("inspect", path).out
    assert json.loads(reelora("inspect", path, "--json").out)["scales"] is None
    assert_is_clear(reelora("generate", PROMPT, "--adapter", path, "--output", tmp_path / "a.mp4"), f"{path},alpha=64")
    video = tmp_path / "a.mp4"
    assert reelora("generate", PROMPT, "--adapter", f"{path}=0.5,alpha=1", "--steps", "1", "--output", video).code == 0
    assert json.loads(reelora("inspect", video, "--json").out)["adapters"][0]["scales"] == [0.5]


def test_the_model_in_the_package_is_never_written_to(reelora, clips):
    before = {path: path.stat().st_mtime_ns for path in MODEL.rglob("*")}
    assert reelora("precompute", "--data", clips).code == 0
    assert {path: path.stat().st_mtime_ns for path in MODEL.rglob("*")} == before


def test_a_name_that_is_no_text_is_refused_before_the_model_is_loaded(reelora, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    result = reelora("generate", "a red circle", "-o", path)
    assert (result.code, "is no UTF-8 text" in result.err) == (2, True), result.err
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_where_nothing_was_in_progress(reelora, tmp_path):
    for arguments in (("inspect", tmp_path / "none.safetensors"), ("generate", "a", "-o", tmp_path / "nowhere" / "a.mp4")):
        result = reelora(*arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1), result.err


def test_an_error_brings_no_control_characters_to_the_terminal(reelora, tmp_path):
    result = reelora("inspect", str(tmp_path / "a\x1b[2J.safetensors"))
    assert result.code == 2
    assert "\x1b" not in result.err
    assert r"\x1b[2J" in result.err
