"""Ctrl-C at any point of a verb: it says so, ends with code 130, and the same command goes on."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from films import write_film

from reelora.adapters import read_adapter
from reelora.train import read_metrics

STOPPED = 130
MOMENTS = [pytest.param(seconds, marks=pytest.mark.slow) for seconds in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)]
"""Seconds after the start: in the imports, in the loading, or in the work, as the machine is fast."""


def interrupt(command, *, when):
    """Run a command in a process of its own and press Ctrl-C after some seconds, or once it has printed a text."""
    command = [sys.executable, "-u", "-m", "reelora", *map(str, command)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    messages = ""
    if isinstance(when, float):
        time.sleep(when)
    else:
        while when not in messages:
            line = process.stderr.readline()
            assert line, f"{when!r} never came: {messages}"
            messages += line
    process.send_signal(signal.SIGINT)
    messages += process.communicate(timeout=100)[1]
    assert "Traceback" not in messages
    assert process.returncode == STOPPED or (isinstance(when, float) and process.returncode == 0), messages
    assert process.returncode == 0 or "stopped" in messages.lower()
    return messages


@pytest.mark.parametrize("when", ["0.mp4", *MOMENTS])
def test_precompute(reelora, clips, files, when):
    write_film(clips / "3.mp4", 400)  # long to decode
    (clips / "3.txt").write_text("a long film")
    command = ["precompute", "--data", clips]
    interrupt(command, when=when)
    assert not [name for name in files() if name.rpartition("/")[2].startswith(".")]
    assert reelora(*command).code == 0
    stopped = {name: content for name, content in files().items() if ".reelora" in name}
    again = reelora(*command)
    assert "0 encoded now" in again.err
    assert {name: content for name, content in files().items() if ".reelora" in name} == stopped


@pytest.mark.parametrize("when", ["modules", *MOMENTS])
def test_train(reelora, clips, tmp_path, when):
    settings = ["--set", "data.held_out=1", "--set", "loop.checkpoint_every=5", "--steps", "40"]
    whole, stopped = (["train", "--data", clips, *settings, "--output", tmp_path / name] for name in ("whole", "stopped"))
    assert reelora(*whole).code == 0
    interrupt(stopped, when=when)
    assert reelora(*stopped).code == 0
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]
    one, other = (read_adapter(tmp_path / name / "adapter.safetensors").pairs for name in ("whole", "stopped"))
    assert all(torch.equal(one[name].a, other[name].a) and torch.equal(one[name].b, other[name].b) for name in one)


@pytest.mark.parametrize("when", MOMENTS)
def test_generate(tmp_path, when):
    command = ["generate", "a red circle", "a blue square", "--steps", "300", "--output", tmp_path / "a.mp4"]
    interrupt(command, when=when)
    assert {path.name for path in tmp_path.iterdir()} <= {"a-0.mp4", "a-1.mp4"}


@pytest.mark.parametrize("when", ["drew 24 clips", *MOMENTS])
def test_demo(tmp_path, when):
    interrupt(["demo", "--output", tmp_path / "demo"], when=when)
    assert not (tmp_path / "demo" / "report.html").exists()
