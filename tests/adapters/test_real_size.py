"""Adapters of CogVideoX-5B's size: memory stays at their own size and a little more."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from benchmarks.adapter_files import make_adapter

    folder = tmp_path_factory.mktemp("real")
    for seed in (0, 1):
        make_adapter(folder / f"{seed}.safetensors", seed=seed)
    return [folder / "0.safetensors", folder / "1.safetensors"]


@pytest.mark.parametrize(
    ("function", "num_sources", "extra"),
    [("convert", 1, ["kohya"]), ("convert", 1, ["sat"]), ("halve", 1, []), ("add", 2, [])],
)
def test_anonymous_memory_is_at_most_the_adapters_size_and_300_mb(files, tmp_path, function, num_sources, extra):
    from benchmarks.adapter_files import ALLOWANCE
    from benchmarks.measured import measure

    output = tmp_path / ("out.pt" if extra == ["sat"] else "out.safetensors")
    _, peak = measure("benchmarks.adapter_files", function, *files[:num_sources], output, *extra)
    assert peak <= sum(file.stat().st_size for file in files[:num_sources]) + ALLOWANCE


def test_inspecting_a_header_reads_no_values(files):
    from benchmarks.measured import anonymous_bytes
    from reelora.adapters import facts_of, read_adapter

    before = anonymous_bytes()
    facts = facts_of(read_adapter(files[0]))
    assert facts["modules"] == 168
    assert anonymous_bytes() - before < 20_000_000
