"""The process of the command line: Ctrl-C at the worst moments is still one line and exit code 130."""

import os
import subprocess
import sys

import pytest

PRESSES = """
import signal, sys, threading, time, weakref

def press():
    signal.raise_signal(signal.SIGINT)

def in_a_callback():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: press())
    del thing

def as_another_error():
    try:
        press()
    except KeyboardInterrupt:
        raise RuntimeError("a library's own") from None

def at_the_end():
    threading.Thread(target=wait_for_the_end).start()

def wait_for_the_end():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    press()

class Thing:
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            {moment}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
"""
"""Run by the interpreter before anything else."""


@pytest.fixture
def ended(tmp_path):
    """How ``python -m reelora`` ends in which something happens when a module is about to be imported."""

    def run(*arguments, module, moment):
        (tmp_path / "sitecustomize.py").write_text(PRESSES.format(module=module, moment=moment))
        command = [sys.executable, "-m", "reelora", *map(str, arguments)]
        paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})

    return run


@pytest.mark.parametrize("module", ["reelora.cli", "typer", "torch", "pydantic"])
@pytest.mark.parametrize("moment", ["press()", "exec('press()')", "in_a_callback()", "as_another_error()"])
def test_ctrl_c_in_an_import_is_one_line_and_code_130(ended, tmp_path, module, moment):
    end = ended("precompute", "--data", tmp_path / "clips", module=module, moment=moment)
    lines = [line for line in end.stderr.splitlines() if line]
    assert end.returncode == 130, end.stderr
    assert lines[-1].startswith("reelora: stopped.")
    assert set(lines[:-1]) <= {"Aborted."}  # typer's


@pytest.mark.parametrize("code", [0, 2])
def test_ctrl_c_after_the_work_changes_nothing(ended, tmp_path, code):
    arguments = {0: ["--version"], 2: ["inspect", tmp_path / "nowhere.safetensors"]}[code]
    end = ended(*arguments, module="typer", moment="at_the_end()")
    assert end.returncode == code
    assert "Traceback" not in end.stderr
    assert "stopped" not in end.stderr


def test_an_error_of_our_own_is_no_stop(ended, tmp_path):
    end = ended("precompute", "--data", tmp_path, module="torch", moment="raise RuntimeError('a defect')")
    assert end.returncode == 1
    assert "RuntimeError: a defect" in end.stderr
