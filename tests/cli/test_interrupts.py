"""Ctrl-C at any point of a verb: it says so, ends with code 130, and the same command goes on."""

import signal
import subprocess
import sys
import time

import pytest

from reelora.train import read_metrics

STOPPED = 130
EARLY, LATER = (2.5,), (0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
"""Seconds after the start; where the machine is slow, early ones fall into the imports and late ones into the work."""


def moments():
    return [*EARLY, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in LATER)]


def interrupt(command, after):
    """Run a command in a process of its own, press Ctrl-C after some seconds; its exit code and messages."""
    process = subprocess.Popen([sys.executable, "-m", "reelora", *map(str, command)], stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    return process.returncode, messages


def assert_stopped(code, messages):
    assert code in (0, STOPPED), messages
    assert "Traceback" not in messages


@pytest.mark.parametrize("after", moments())
def test_precompute(reelora, clips, files, after):
    command = ["precompute", "--data", clips]
    assert_stopped(*interrupt(command, after))
    assert not [name for name in files() if name.endswith((".tmp", ".part"))]
    assert reelora(*command).code == 0
    stopped = {name: content for name, content in files().items() if ".reelora" in name}
    again = reelora(*command)
    assert "0 encoded now" in again.err
    assert {name: content for name, content in files().items() if ".reelora" in name} == stopped


@pytest.mark.parametrize("after", moments())
def test_train(reelora, clips, tmp_path, after):
    settings = ["--set", "data.held_out=1", "--set", "loop.checkpoint_every=5", "--set", "tensorboard=false", "--steps", "40"]
    whole, stopped = (["train", "--data", clips, *settings, "--output", tmp_path / name] for name in ("whole", "stopped"))
    assert reelora(*whole).code == 0
    assert_stopped(*interrupt(stopped, after))
    assert reelora(*stopped).code == 0
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]
    adapters = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert len(adapters[0]) == pytest.approx(len(adapters[1]), abs=64)


@pytest.mark.parametrize("after", moments())
def test_generate(reelora, tmp_path, after):
    command = ["generate", "a red circle", "a blue square", "--steps", "300", "--output", tmp_path / "a.mp4"]
    assert_stopped(*interrupt(command, after))
    assert {path.name for path in tmp_path.iterdir()} <= {"a-0.mp4", "a-1.mp4"}
