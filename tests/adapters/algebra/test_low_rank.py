"""Laws of making pairs of dense updates: what is lost is near the least possible, and proved to be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import dense, matrix_with

from reelora.adapters.algebra import low_rank
from reelora.adapters.algebra.low_rank import reduce_dense
from reelora.adapters.algebra.sizes import Size
from reelora.errors import AdapterError

SIDE = 600
"""Large enough for the randomised way."""


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def steps(count=SIDE):
    return torch.arange(1, count + 1, dtype=torch.float64)


SPECTRA = {
    "all alike": torch.ones(SIDE),
    "a straight line": 1 - steps() / SIDE,
    "like noise": torch.linalg.svdvals(torch.randn(SIDE, SIDE, generator=numbers())),
    "a slow decay": steps() ** -0.5,
    "a decay": steps() ** -1.0,
    "a steep decay": steps() ** -3.0,
    "exponential": torch.exp(-steps() / 20),
    "a cliff beyond the rank": torch.cat([torch.ones(40), torch.full((SIDE - 40,), 1e-3)]),
    "a cliff before the rank": torch.cat([torch.ones(10), torch.full((SIDE - 10,), 1e-2)]),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_error_is_within_one_percent_of_the_smallest_possible(kind):
    values = SPECTRA[kind].double()
    matrix = matrix_with(values, out=SIDE, inp=SIDE).float()
    found = reduce_dense(matrix, Size(rank=24), numbers(1), dtype=torch.float32)
    smallest, size = float(values[24:].norm()), float(values.norm())
    assert math.sqrt(found.lost) <= 1.01 * smallest + 3e-5 * size
    assert float((matrix - dense(found.pair)).norm()) == pytest.approx(math.sqrt(found.lost), rel=1e-3, abs=1e-6 * size)


def test_a_fixed_number_of_passes_would_not_do():
    """torch's svd_lowrank, as kohya's faster resize calls it, misses the bar on a flat spectrum by far."""
    matrix = matrix_with(SPECTRA["like noise"], out=SIDE, inp=SIDE).float()
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(matrix, q=24)
    theirs = float((matrix - (u * s) @ v.mT).square().sum())
    energy, least = float(matrix.double().square().sum()), float(SPECTRA["like noise"][24:].square().sum())
    ours = reduce_dense(matrix, Size(rank=24), numbers(1), dtype=torch.float32).lost
    # Compared by what is captured: of a flat spectrum, any 24 directions lose nearly everything.
    assert (energy - ours) / (energy - least) > 0.95 > (energy - theirs) / (energy - least)


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_proof_holds_in_every_pass(kind):
    values = SPECTRA[kind].double()
    matrix = matrix_with(values, out=SIDE, inp=SIDE).float()
    right = low_rank._noise(matrix, low_rank._width(24), numbers(2))
    for _ in range(3):
        found, right = low_rank._pass(matrix, right)
        missed = float(values[:24].square().sum() - found.values[:24].double().square().sum())
        assert missed <= low_rank._excess(found, 24) + 1e-6 * float(values.square().sum())


@given(st.floats(1e-3, 0.5), st.floats(0, 0.3))
@settings(deadline=None)
def test_a_hidden_neighbour_of_nearly_the_same_size_is_reckoned_with(coupling, step):
    """Energies 1 (found), 1 - step (spare), 1 - step (outside, coupled to the first): one more direction may lift the first."""
    gram = torch.diag(torch.tensor([1.0, 1 - step, 1 - step], dtype=torch.float64))
    gram[0, 2] = gram[2, 0] = coupling
    found, _ = low_rank._pass(torch.linalg.cholesky(gram).mT, torch.eye(3, dtype=torch.float64)[:, :2])
    possible = float(torch.linalg.eigvalsh(gram)[-1]) - 1
    assert possible * (1 - 1e-9) <= low_rank._excess(found, 1) <= 1.01 * possible + 1e-9


def test_a_first_guess_on_a_flat_spectrum_is_not_believed():
    matrix = matrix_with(SPECTRA["like noise"], out=SIDE, inp=SIDE).float()
    found, _ = low_rank._pass(matrix, low_rank._noise(matrix, low_rank._width(24), numbers(3)))
    assert not low_rank._is_proved(found, 24, Size(rank=24))


@pytest.mark.parametrize("kind", ["a decay", "a steep decay", "exponential", "a straight line", "like noise"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_keep_takes_the_smallest_rank_that_keeps_enough(kind, keep):
    values = SPECTRA[kind].double()
    found = reduce_dense(matrix_with(values, out=SIDE, inp=SIDE).float(), Size(keep=keep), numbers(1), dtype=torch.float32)
    shares = values.square().cumsum(0) / values.square().sum()
    assert found.pair.rank == int((shares < keep).sum()) + 1
    assert found.lost <= (1 - keep + 1e-6) * found.energy


def test_what_is_of_low_rank_is_found_whole_and_no_larger_than_it_is():
    matrix = matrix_with([3.0] * 9 + [0.01], out=SIDE, inp=SIDE).float()
    found = reduce_dense(matrix, Size(keep=1.0), numbers(1), dtype=torch.float32)
    assert found.pair.rank == 10
    assert math.sqrt(found.lost / found.energy) < 2e-6


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None)
def test_small_updates_are_decomposed_exactly(out, inp, rank, seed):
    matrix = torch.randn(out, inp, generator=numbers(seed))
    found = reduce_dense(matrix, Size(rank=rank), numbers(), dtype=torch.float64)
    least = float(torch.linalg.svdvals(matrix.double())[rank:].square().sum())
    assert found.pair.rank == min(rank, out, inp)
    rounding = 2**-22 * math.sqrt(least * found.energy)  # the factors are stored in float32
    assert found.lost == pytest.approx(least, rel=1e-5, abs=1e-11 * found.energy + rounding)


def test_a_rank_over_a_third_of_the_matrix_is_decomposed_whole():
    values = SPECTRA["a straight line"]
    found = reduce_dense(matrix_with(values, out=SIDE, inp=SIDE).float(), Size(rank=500), numbers(), dtype=torch.float32)
    assert math.sqrt(found.lost) == pytest.approx(float(values[500:].norm()), rel=1e-3)


def test_the_same_seed_gives_the_same_pair():
    matrix = matrix_with(SPECTRA["a decay"], out=SIDE, inp=SIDE).float()
    first, again = (reduce_dense(matrix, Size(rank=8), numbers(5), dtype=torch.float32).pair for _ in range(2))
    assert torch.equal(first.a, again.a)
    assert torch.equal(first.b, again.b)


def test_zero_is_a_pair_of_zeros_and_nan_is_refused():
    found = reduce_dense(torch.zeros(5, 4), Size(keep=0.9), numbers(), dtype=torch.bfloat16)
    assert (found.pair.rank, found.lost, found.energy, found.pair.a.dtype) == (1, 0.0, 0.0, torch.bfloat16)
    with pytest.raises(AdapterError, match="NaN"):
        reduce_dense(torch.full((5, 4), math.inf), Size(rank=1), numbers(), dtype=torch.float32)
