"""The small text files of SAT."""

import pytest

from reelora.errors import FileFormatError
from reelora.tensorio import SAT_TRACKER, read_iteration, read_sat_yaml


@pytest.mark.parametrize("said", ["1000", "release", " 500\n"])
def test_the_tracker_names_an_iteration(tmp_path, said):
    (tmp_path / SAT_TRACKER).write_text(said)
    assert read_iteration(tmp_path) == said.strip()


@pytest.mark.parametrize("said", [b"", b"..", b"../1000", b"/etc", b"0", b"-1", b"1000 2000", b"\xff", b"1" * 13, b"9" * 10**6])
def test_what_is_no_iteration_leads_nowhere(tmp_path, said):
    (tmp_path / SAT_TRACKER).write_bytes(said)
    with pytest.raises(FileFormatError, match="it has to name an iteration"):
        read_iteration(tmp_path)


def test_a_config_is_small(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_bytes(b"#" * 1_000_000)
    assert len(read_sat_yaml(path)) == 1_000_000
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(FileFormatError, match="1,000,001 bytes are no SAT YAML"):
        read_sat_yaml(path)
