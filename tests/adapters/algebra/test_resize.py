"""Laws of resizing: the best approximation of its size, at the same strength, and no smaller or larger than asked."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import NAMES, Q, adapter_of, dense, gap, pair_with, random_adapter, random_pair

from reelora.adapters import Pair, largest_difference, read_adapter, relative_difference, write_adapter
from reelora.adapters.algebra import energy_kept, resize, singular_values
from reelora.errors import AdapterError, ConfigError, MismatchError, UnknownScaleError

SPECTRA = st.lists(st.floats(1e-3, 10), min_size=2, max_size=8).map(lambda values: sorted(values, reverse=True))


@given(SPECTRA, st.integers(1, 8), st.sampled_from([0.5, 0.0078125, 5.65, -0.3]))
@settings(deadline=None)
def test_what_is_lost_is_exactly_the_energy_of_the_singular_values_left_out(values, rank, scale):
    pair = pair_with(values, scale=scale)
    small = resize(adapter_of({Q: pair}), rank=rank).pairs[Q]
    lost = math.sqrt(sum(value**2 for value in values[rank:]))
    # float32 factors: the update itself is known to 1e-6 of its norm.
    assert float((dense(pair) - dense(small)).norm()) == pytest.approx(lost, rel=1e-4, abs=2e-6 * math.hypot(*values))
    assert small.rank == min(rank, len(values))


@given(SPECTRA, st.floats(0.01, 1.0))
@settings(deadline=None)
def test_keep_takes_the_smallest_rank_that_keeps_enough(values, keep):
    """kohya's resize keeps one rank more than needed, LyCORIS' quantile one fewer."""
    pair = pair_with(values, dtype=torch.float64)
    rank = resize(adapter_of({Q: pair}), keep=keep).pairs[Q].rank
    energy = [value**2 for value in values]
    assert sum(energy[:rank]) >= keep * sum(energy) * (1 - 1e-12)
    assert rank == 1 or sum(energy[: rank - 1]) < keep * sum(energy) * (1 + 1e-12)


@pytest.mark.parametrize(("keep", "rank"), [(0.9, 1), (0.900001, 2), (1.0, 2), (0.5, 1)])
def test_a_share_that_is_met_exactly_is_met(keep, rank):
    pair = pair_with([3.0, 1.0], dtype=torch.float64)
    assert resize(adapter_of({Q: pair}), keep=keep).pairs[Q].rank == rank


def test_an_update_of_just_the_wanted_rank_loses_nothing():
    """The clamp to the 0.99 quantile that kohya, ComfyUI and cloneofsimo apply costs 9 % here."""
    pair = random_pair(3, rank=8, out=64, inp=48)
    wide = Pair(torch.cat([pair.a, 2 * pair.a]), torch.cat([pair.b, pair.b], dim=1), 0.5)
    small = resize(adapter_of({Q: wide}), rank=8).pairs[Q]
    assert relative_difference(wide, small) < 1e-6
    u, s, vt = torch.linalg.svd(dense(wide))
    left, right = u[:, :8] * s[:8], vt[:8]
    bound = torch.cat([left.flatten(), right.flatten()]).quantile(0.99)
    assert gap(dense(wide), left.clamp(-bound, bound) @ right.clamp(-bound, bound)) > 0.08


def test_everything_is_kept_by_the_rank_that_the_update_really_has():
    pair = random_pair(3, rank=3)
    wide = Pair(torch.cat([pair.a, pair.a]), torch.cat([pair.b, -0.5 * pair.b], dim=1), 1.0)
    small = resize(adapter_of({Q: wide}), keep=1.0).pairs[Q]
    assert small.rank == 3
    assert relative_difference(wide, small) < 1e-6


@pytest.mark.parametrize("size", [{"rank": 2}, {"keep": 0.99}, {"size_bytes": 10_000}])
def test_an_update_of_zero_becomes_rank_one_at_most_and_stays_zero(size):
    dead = Pair(torch.ones(4, 10), torch.zeros(12, 4), 0.5)
    small = resize(adapter_of({Q: dead}), **size)
    assert small.pairs[Q].rank <= 2
    assert not dense(small.pairs[Q]).any()
    assert energy_kept(adapter_of({Q: dead}), small).total == 1.0
    assert resize(adapter_of({Q: dead}), keep=0.99).ranks == (1,)


def test_what_is_small_enough_stays_as_it_is_bit_for_bit():
    adapter = random_adapter(0)
    for rank in (4, 100):
        same = resize(adapter, rank=rank)
        assert all(torch.equal(same.pairs[name].a, adapter.pairs[name].a) for name in NAMES)
        assert largest_difference(adapter, same) == 0.0


def test_resizing_twice_is_resizing_once():
    adapter = random_adapter(1, rank=8)
    assert largest_difference(resize(adapter, rank=3), resize(resize(adapter, rank=5), rank=3)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_scale_stay_and_the_result_survives_its_file(dtype, tmp_path):
    adapter = random_adapter(2, rank=8, scale=0.5, dtype=dtype)
    small = resize(adapter, rank=3)
    assert all((pair.a.dtype, pair.b.dtype, pair.scale) == (dtype, dtype, 0.5) for pair in small.pairs.values())
    write_adapter(small, tmp_path / "small.safetensors")
    assert largest_difference(small, read_adapter(tmp_path / "small.safetensors")) == 0.0


def test_small_updates_are_not_lost_in_float16():
    """Both factors take the root of the singular values: all in B, the small ones would fall among float16's subnormals."""
    values = [1e-2, 1e-4, 1e-6]
    pair = pair_with([*values, 1e-12], out=512, inp=512, scale=1.0)
    small = resize(adapter_of({Q: Pair(pair.a.half(), pair.b.double(), 1.0)}), rank=3).pairs[Q]
    halves = Pair(small.a, small.b.half(), 1.0)
    found = singular_values(halves)
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=2e-3, atol=0)
    all_in_b = (pair.b[:, 2:3] @ torch.ones(1, 1)).half().double()
    assert gap(pair.b[:, 2:3].double(), all_in_b) > 0.1


def test_a_scale_that_no_spec_can_hold_goes_into_the_factors():
    pair = random_pair(0, rank=8, scale=-0.7)
    small = resize(adapter_of({Q: pair}), keep=1.0)
    assert resize(adapter_of({Q: pair}), rank=7).pairs[Q].scale == 1.0
    assert relative_difference(pair, small.pairs[Q]) < 1e-6


def test_a_byte_budget_is_met_and_keeps_more_than_one_rank_for_all():
    steep, flat = pair_with([9.0, 1e-2, 1e-3, 1e-4], out=40, inp=30), pair_with([2.0, 2.0, 2.0, 2.0], out=20, inp=10)
    adapter = adapter_of({NAMES[0]: steep, NAMES[1]: flat})
    uniform = resize(adapter, rank=2)
    budget = 4 * uniform.num_parameters
    shared = resize(adapter, size_bytes=budget)
    assert [pair.rank for pair in shared.pairs.values()] == [1, 4]
    assert 4 * shared.num_parameters <= budget
    assert energy_kept(adapter, shared).total > energy_kept(adapter, uniform).total + 0.08


@given(st.lists(SPECTRA, min_size=2, max_size=3), st.integers(2, 20))
@settings(deadline=None)
def test_of_equally_costly_ranks_the_largest_singular_values_are_bought(spectra, count):
    names = NAMES[: len(spectra)]
    adapter = adapter_of({name: pair_with(values, dtype=torch.float64) for name, values in zip(names, spectra, strict=True)})
    count = max(count, len(names))
    shared = resize(adapter, size_bytes=8 * 22 * count)
    rest = sorted((value for values in spectra for value in values[1:]), reverse=True)[: count - len(names)]
    best = sum(values[0] ** 2 for values in spectra) + sum(value**2 for value in rest)
    total = sum(value**2 for values in spectra for value in values)
    assert energy_kept(adapter, shared).total == pytest.approx(best / total, rel=1e-9)


def test_a_budget_that_is_too_small_names_the_smallest_possible():
    adapter = random_adapter(0)
    smallest = 4 * 4 * (12 + 10)
    assert resize(adapter, size_bytes=smallest).ranks == (1,)
    with pytest.raises(ConfigError, match=f"{smallest - 1} bytes are too few: the smallest possible is {smallest}, rank 1"):
        resize(adapter, size_bytes=smallest - 1)


def test_what_holds_no_energy_is_never_bought():
    assert resize(adapter_of({Q: pair_with([1.0, 1.0, 0.0, 0.0])}), size_bytes=10**9).ranks == (2,)


IMPOSSIBLE = {
    "rank": [0, 1.5, True],
    "keep": [0.0, 1.01, math.nan, True],
    "size_bytes": [-1, 1e6],
}


@pytest.mark.parametrize(
    "size", [{}, {"rank": 2, "keep": 0.5}, *({name: value} for name in IMPOSSIBLE for value in IMPOSSIBLE[name])]
)
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError):
        resize(random_adapter(0), **size)


def test_nothing_is_computed_from_an_unknown_scale_or_from_nan():
    with pytest.raises(UnknownScaleError):
        resize(random_adapter(0, scale=None), rank=2)
    sick = random_pair(0)
    sick.b[0, 0] = math.nan
    with pytest.raises(AdapterError, match="NaN"):
        resize(adapter_of({Q: sick}), rank=2)


def test_the_spec_of_the_result_tells_its_ranks_and_the_provenance_what_was_kept():
    adapter = adapter_of({NAMES[0]: pair_with([3.0, 1.0, 0.1]), NAMES[1]: pair_with([2.0, 2.0, 2.0])}, trigger_words="star")
    small = resize(adapter, keep=0.95)
    assert small.spec is not None
    assert {name: small.spec.rank_of(name.partition(".")[2]) for name in small.pairs} == {NAMES[0]: 2, NAMES[1]: 3}
    kept = energy_kept(adapter, small)
    assert kept.modules == pytest.approx({NAMES[0]: 10 / 10.01, NAMES[1]: 1.0}, rel=1e-6)
    assert (kept.worst, kept.total) == (NAMES[0], pytest.approx(22 / 22.01, rel=1e-6))
    assert small.provenance == {"trigger_words": "star", "energy_kept": str(kept)}


def test_a_module_that_is_gone_keeps_nothing_and_another_model_is_no_measure():
    adapter = random_adapter(0)
    part = adapter_of({Q: adapter.pairs[Q]})
    assert energy_kept(adapter, part).modules == {Q: 1.0, **dict.fromkeys(NAMES[1:], 0.0)}
    with pytest.raises(MismatchError, match="4 of 4 modules differ in shape"):
        energy_kept(adapter, random_adapter(0, inp=11))


def test_progress_is_told_module_by_module():
    told = []
    resize(random_adapter(0), rank=2, on_progress=lambda *words: told.append(words))
    assert told == [(done, 4, name) for done, name in enumerate(NAMES, start=1)]
