"""The process of the command line: every name of a file can be printed."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "utf-8:surrogateescape"])
def test_the_name_of_a_file_that_is_no_text_is_spelled_out_at_the_end_of_a_verb(tmp_path, encoding):
    name = os.fsdecode(b"caf\xe9 \xc3\xbc.toml")
    command = [sys.executable, "-m", "reelora", "train", "--init", name]
    end = subprocess.run(command, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert end.returncode == 0, end.stderr
    assert (tmp_path / name).is_file()
    letter = b"\\xfc" if "ascii" in encoding else b"\xc3\xbc"
    assert end.stdout.startswith(b"Wrote caf\\udce9 " + letter + b".toml.")


def test_the_same_is_so_of_errors(tmp_path):
    name = os.fsdecode(b"caf\xe9.toml")
    end = subprocess.run(
        [sys.executable, "-m", "reelora", "train", name],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert end.returncode == 2
    assert end.stderr.startswith(b"reelora: caf\\")
    assert b"Traceback" not in end.stderr
