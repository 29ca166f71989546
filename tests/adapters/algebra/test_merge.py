"""Laws of merging: the sum is exact, the others act on the true updates, and chance depends on nothing but its seed."""

import math
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import nn
from updates import NAMES, Q, adapter_of, dense, gap, random_adapter, random_pair

from reelora.adapters import (
    Adapter,
    LoraSpec,
    Magnitude,
    Pair,
    largest_difference,
    read_adapter,
    relative_difference,
    write_adapter,
)
from reelora.adapters.algebra import METHODS, energy_kept, merge, resize
from reelora.errors import AdapterError, ConfigError, MismatchError, UnknownScaleError

DENSE = [name for name, method in METHODS.items() if method.join]
STRENGTHS = st.floats(-2, 2).filter(lambda strength: abs(strength) > 1e-3)


def expected_sum(parts, name):
    terms = [strength * dense(adapter.pairs[name]) for adapter, strength in parts if name in adapter.pairs]
    return torch.stack(terms).sum(dim=0)


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 9), st.sampled_from([0.5, 1 / 128, 5.65, -0.1]), STRENGTHS),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None)
def test_the_sum_is_the_sum_of_the_updates(terms):
    parts = [(random_adapter(seed, rank=rank, scale=scale), strength) for seed, rank, scale, strength in terms]
    merged = merge(parts)
    size = sum(float((strength * dense(adapter.pairs[Q])).norm()) for adapter, strength in parts)
    # Only the gain is rounded, once, in float32: 6e-8 of each term.
    assert float((dense(merged.pairs[Q]) - expected_sum(parts, Q)).norm()) < 1e-6 * size
    assert merged.pairs[Q].rank == sum(rank for _, rank, _, _ in terms)


def test_adapters_may_differ_in_rank_alpha_rslora_targets_roles_and_dtype():
    one = random_adapter(0, rank=3, scale=LoraSpec(rank=3, alpha=7).scale, names=NAMES[:3])
    two = random_adapter(
        1, rank=8, scale=LoraSpec(rank=8, alpha=4, rslora=True).scale, names=[*NAMES[2:], "text_encoder.layers.0.q"]
    )
    half = random_adapter(2, names=NAMES[:1], dtype=torch.bfloat16)
    parts = [(one, 0.7), (two, -0.5), (half, 1.0)]
    merged = merge(parts)
    assert {name: pair.rank for name, pair in merged.pairs.items()} == dict(zip(merged.pairs, [7, 3, 11, 8, 8], strict=True))
    assert all(gap(expected_sum(parts, name), dense(pair)) < 1e-6 for name, pair in merged.pairs.items())
    assert (merged.layout, merged.roles) == ("memory", ("transformer", "text_encoder"))


def test_a_merged_adapter_survives_its_file_at_its_strength(tmp_path):
    merged = merge([(random_adapter(0), 0.7), (random_adapter(1, names=NAMES[:2]), 0.5)])
    assert write_adapter(merged, tmp_path / "a.safetensors") == 0.0
    again = read_adapter(tmp_path / "a.safetensors")
    assert largest_difference(merged, again) == 0.0
    assert again.provenance == merged.provenance


@given(STRENGTHS, STRENGTHS)
@settings(deadline=None)
def test_merging_is_linear_in_the_strengths(first, second):
    one, two = random_adapter(0), random_adapter(1)
    single = merge([(merge([(one, 1.0), (two, 1.0)]), first), (one, second)])
    assert largest_difference(merge([(one, first), (two, first), (one, second)]), single) < 1e-6


def test_the_sum_is_associative_bit_for_bit_and_commutes():
    one, two, three = (random_adapter(seed, scale=0.3) for seed in range(3))
    left = merge([(merge([(one, 0.7), (two, 0.5)]), 1.0), (three, 0.2)])
    right = merge([(one, 0.7), (merge([(two, 0.5), (three, 0.2)]), 1.0)])
    assert all(torch.equal(left.pairs[name].b, right.pairs[name].b) for name in NAMES)
    assert largest_difference(merge([(one, 0.7), (two, 0.5)]), merge([(two, 0.5), (one, 0.7)])) < 1e-12


def test_an_adapter_minus_itself_is_nothing_and_at_strength_zero_it_is_not_there():
    one, two = random_adapter(0), random_adapter(1)
    assert not any(float(dense(pair).norm()) > 1e-12 for pair in merge([(one, 1.0), (one, -1.0)]).pairs.values())
    assert largest_difference(two, merge([(one, 0.0), (two, 1.0)])) < 1e-12


def test_a_sum_that_is_cut_down_is_the_best_of_its_rank():
    parts = [(random_adapter(0), 1.0), (random_adapter(1), 1.0)]
    merged, small = merge(parts), merge(parts, rank=3)
    assert small.ranks == (3,)
    assert largest_difference(resize(merged, rank=3), small) < 1e-6
    kept = float(small.provenance["energy_kept"].partition(" ")[0])
    assert kept == pytest.approx(energy_kept(merged, small).total, abs=1e-5)
    assert merge(parts, keep=1.0).ranks == (8,)
    assert merge([(random_adapter(0), 1.0), (random_adapter(0), 1.0)], keep=1.0).ranks == (4,)


class Net(nn.Module):
    """One Linear that PEFT can put adapters on."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(48, 64, bias=False)


def peft_merges(pairs, weights, combination, *, rslora=False, alpha=4):
    """The dense update that PEFT's add_weighted_adapter makes of pairs."""
    names = [f"a{place}" for place in range(len(pairs))]
    model: Any = None
    for name, pair in zip(names, pairs, strict=True):
        config = peft.LoraConfig(r=pair.rank, lora_alpha=alpha, target_modules=["to_q"], use_rslora=rslora)
        if model is None:
            model = peft.get_peft_model(Net(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        layer = model.base_model.model.to_q
        layer.lora_A[name].weight.data.copy_(pair.a)
        layer.lora_B[name].weight.data.copy_(pair.b)
    model.base_model.add_weighted_adapter(names, weights, "merged", combination_type=combination)
    return model.base_model.model.to_q.get_delta_weight("merged").detach().double()


def test_peft_linear_averages_factors_and_is_off_by_more_than_half():
    pairs = [random_pair(seed, rank=8, out=64, inp=48, scale=4 / 8) for seed in (0, 1)]
    parts = [(adapter_of({Q: pair}), strength) for pair, strength in zip(pairs, (0.7, 0.5), strict=True)]
    true = expected_sum(parts, Q)
    assert gap(true, dense(merge(parts).pairs[Q])) < 1e-6
    assert gap(true, peft_merges(pairs, [0.7, 0.5], "linear")) > 0.5
    # PEFT's cat is exact, so that the comparison is one of the same thing.
    assert gap(true, peft_merges(pairs, [0.7, 0.5], "cat")) < 1e-5


def test_peft_is_too_strong_by_the_root_of_the_rank_where_a_source_is_rslora():
    pairs = [random_pair(seed, rank=16, out=64, inp=48, scale=LoraSpec(rank=16, alpha=4, rslora=True).scale) for seed in (0, 1)]
    parts = [(adapter_of({Q: pair}), 1.0) for pair in pairs]
    true = expected_sum(parts, Q)
    assert gap(true, dense(merge(parts).pairs[Q])) < 1e-6
    theirs = peft_merges(pairs, [1.0, 1.0], "cat", rslora=True)
    assert float(theirs.norm() / true.norm()) == pytest.approx(math.sqrt(32), rel=1e-3)


def full_rank(parts, method, **settings):
    """The merged update, nothing cut off."""
    return dense(merge(parts, method, keep=1.0, dtype=torch.float64, **settings).pairs[Q])


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_on_true_updates_of_equal_strength_trimming_and_election_are_those_of_peft(method, density):
    """PEFT's own merge_utils, called on the dense updates; its adapters call it on the factors, which is another function."""
    parts = [(random_adapter(seed, names=[Q]), 0.8) for seed in range(3)]
    updates = [adapter.delta(Q) for adapter, _ in parts]
    expected = getattr(merge_utils, method)(updates, torch.full((3,), 0.8), density)
    # The sum of 12 x 10 entries at float32, factorised: 1e-5 is what `keep=1` calls rounding.
    assert gap(expected.double(), full_rank(parts, method, density=density)) < 2e-5


def test_ties_is_the_mean_of_the_entries_of_the_elected_sign():
    rows = [[3.0, -1.0, 2.0, 1.0], [1.0, -3.0, -2.0, 0.0], [2.0, 1.0, 1.0, -0.5]]
    updates = [Pair(torch.tensor([row]), torch.ones(1, 1), 1.0) for row in rows]
    merged = full_rank([(adapter_of({Q: pair}), 1.0) for pair in updates], "ties", density=1.0)
    torch.testing.assert_close(merged, torch.tensor([[2.0, -2.0, 1.5, 1.0]], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_where_both_signs_weigh_the_same_ties_leaves_nothing():
    one, minus = (Pair(torch.tensor([[1.0, sign]]), torch.ones(1, 1), 1.0) for sign in (1.0, -1.0))
    merged = full_rank([(adapter_of({Q: pair}), 1.0) for pair in (one, minus)], "ties", density=1.0)
    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0]], dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", DENSE)
def test_all_strengths_together_scale_the_result(method):
    adapters = [random_adapter(seed, names=[Q]) for seed in range(3)]
    once = full_rank([(adapter, 1.0) for adapter in adapters], method, density=0.5)
    twice = full_rank([(adapter, -2.0) for adapter in adapters], method, density=0.5)
    assert gap(-2 * once, twice) < 5e-5


@pytest.mark.parametrize("method", DENSE)
def test_one_adapter_of_which_everything_stays_is_itself(method):
    adapter = random_adapter(0)
    assert largest_difference(adapter, merge([(adapter, 1.0)], method, rank=4, density=1.0)) < 2e-6


def test_dare_is_the_sum_on_the_average():
    parts = [(random_adapter(seed, names=[Q], rank=2), 1.0) for seed in range(2)]
    mean = torch.stack([full_rank(parts, "dare", density=0.5, seed=seed) for seed in range(200)]).mean(dim=0)
    # One entry of a merge scatters by about its own size: by 1 / sqrt(200) = 7 % of it in the mean.
    assert gap(expected_sum(parts, Q), mean) < 0.12


def test_dare_keeps_the_share_that_is_asked_for_and_rescales_it():
    adapter = adapter_of({Q: Pair(torch.ones(1, 200), torch.ones(100, 1), 1.0)})
    merged = full_rank([(adapter, 1.0)], "dare", density=0.3)
    kept = merged > 0.5
    # 20,000 draws: a standard deviation of 0.3 %.
    assert float(kept.double().mean()) == pytest.approx(0.3, abs=0.015)
    torch.testing.assert_close(merged[kept], torch.full_like(merged[kept], 1 / 0.3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_chance_depends_on_seed_and_name_and_not_on_what_is_around(method):
    adapter = random_adapter(0)
    backwards = adapter_of({name: adapter.pairs[name] for name in reversed(NAMES)})
    alone = adapter_of({Q: adapter.pairs[Q]})
    outcomes = [merge([(one, 1.0), (one, 0.5)], method, rank=3, density=0.5, seed=7) for one in (adapter, backwards, alone)]
    first, *others = (merged.pairs[Q] for merged in outcomes)
    assert all(torch.equal(first.a, other.a) and torch.equal(first.b, other.b) for other in others)
    other_seed = merge([(alone, 1.0), (alone, 0.5)], method, rank=3, density=0.5, seed=8)
    assert relative_difference(first, other_seed.pairs[Q]) > 0.1


def test_the_same_entries_of_two_modules_are_not_dropped_together():
    pair = Pair(torch.ones(1, 40), torch.ones(40, 1), 1.0)
    both = adapter_of({NAMES[0]: pair, NAMES[1]: pair})
    merged = merge([(both, 1.0)], "dare", keep=1.0, density=0.5)
    assert relative_difference(merged.pairs[NAMES[0]], merged.pairs[NAMES[1]]) > 0.3


def test_two_adapters_do_not_lose_the_same_entries():
    adapter = adapter_of({Q: Pair(torch.ones(1, 40), torch.ones(40, 1), 1.0)})
    merged = full_rank([(adapter, 1.0), (adapter, 1.0)], "dare", density=0.5)
    # Each entry is dropped twice, once or never: a quarter, a half, a quarter.
    assert float((merged - 2).abs().lt(0.1).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", DENSE)
def test_a_module_that_one_adapter_lacks_is_zero_there(method):
    one, two = random_adapter(0), random_adapter(1, names=NAMES[1:])
    zero = adapter_of({**two.pairs, Q: Pair(torch.zeros(4, 10), torch.zeros(12, 4), 1.0)})
    settings = {"rank": 4, "density": 0.5}
    assert (
        largest_difference(
            merge([(one, 1.0), (two, 1.0)], method, **settings), merge([(one, 1.0), (zero, 1.0)], method, **settings)
        )
        < 1e-6
    )


def test_kernels_of_convolutions_stay_and_have_to_agree():
    conv = adapter_of({Q: Pair(torch.ones(2, 18), torch.ones(6, 2), 1.0, kernel=(3, 3))})
    parts = [(conv, 1.0), (conv, 1.0)]
    for merged in (merge(parts), merge(parts, rank=1), merge(parts, "ties", rank=1, density=0.5)):
        assert merged.pairs[Q].kernel == (3, 3)
    flat = adapter_of({Q: Pair(torch.ones(2, 18), torch.ones(6, 2), 1.0)})
    with pytest.raises(MismatchError, match="6 x 18 x 3 x 3 and 6 x 18"):
        merge([(conv, 1.0), (flat, 1.0)])


def test_what_cannot_be_merged_is_named_before_anything_is_computed():
    good = random_adapter(0)
    unknown, sick = random_adapter(1, scale=None), adapter_of({Q: Pair(torch.full((2, 10), math.nan), torch.ones(12, 2), 1.0)})
    with pytest.raises(
        UnknownScaleError, match=r"(?s)adapter 2 of 3: Nothing says how strong.*adapter 3 of 3: 1 of 1 pairs hold NaN"
    ):
        merge([(good, 1.0), (unknown, 1.0), (sick, 1.0)])
    with pytest.raises(MismatchError, match=rf"4 of 4 modules differ in shape.*{Q} \(12 x 10 and 12 x 11\)"):
        merge([(good, 1.0), (random_adapter(1, inp=11), 1.0)])
    pair = good.pairs[Q]
    dora = adapter_of({Q: Pair(pair.a, pair.b, 1.0, magnitude=Magnitude(torch.ones(12), "out", "PEFT"))})
    with pytest.raises(AdapterError, match="adapter 1 of 2: 1 pairs are a DoRA"):
        merge([(dora, 1.0), (good, 1.0)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "tiess"}, "did you mean 'ties'"),
        ({"method": "ties", "density": 0.2}, "rank= or keep="),
        ({"method": "ties", "rank": 4}, "needs density="),
        ({"method": "dare", "rank": 4, "density": 0.0}, "needs density="),
        ({"density": 0.5}, "takes no density"),
        ({"rank": 4, "keep": 0.9}, "exactly one of rank=, keep="),
        ({"dtype": torch.int8}, "floating point"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        merge([(random_adapter(0), 1.0)], **settings)


def test_everything_wrong_with_the_settings_is_said_at_once():
    with pytest.raises(ConfigError, match=r"(?s)no adapter.*no method"):
        merge([], "average")
    with pytest.raises(ConfigError, match=r"(?s)1 strengths are no finite numbers: nan.*needs density=.*rank= or keep="):
        merge([(random_adapter(0), math.nan)], "dare")


def test_what_overflows_the_dtype_is_refused():
    with pytest.raises(AdapterError, match=r"4 of 4 modules are too large for torch\.float16"):
        merge([(random_adapter(0), 1e6)], dtype=torch.float16)


def test_the_provenance_says_what_was_merged_how():
    one = random_adapter(0).with_provenance(base_values="ab", data_hash="1", trigger_words="star, moon")
    two = random_adapter(1).with_provenance(base_values="ab", data_hash="2", trigger_words="moon, sun", config_hash="c0")
    merged = merge([(one, 0.7), (two, -0.5)], "dare", rank=4, density=0.5, seed=3)
    assert merged.provenance["base_values"] == "ab"
    assert "data_hash" not in merged.provenance
    assert merged.provenance["trigger_words"] == "star, moon, sun"
    assert merged.provenance["merged_by"] == "dare, density 0.5, seed 3"
    assert merged.provenance["merged_from"] == f"0.7 x {one!r}; -0.5 x {two!r}, config_hash c0"
    assert merged.provenance["energy_kept"].endswith(tuple(NAMES))
    assert merged.scale_source == "merged by dare: scales and strengths are in the factors"


def test_tokens_come_along_and_must_not_contradict_each_other():
    def with_token(word, value):
        pairs = random_adapter(0).pairs
        return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", tokens={word: torch.full((3,), value)})

    assert [*merge([(with_token("<a>", 1.0), 1.0), (with_token("<b>", 2.0), 1.0)]).tokens] == ["<a>", "<b>"]
    with pytest.raises(MismatchError, match="1 tokens mean something else in each adapter: <a>"):
        merge([(with_token("<a>", 1.0), 1.0), (with_token("<a>", 2.0), 1.0)])


def test_progress_is_told_module_by_module():
    told = []
    merge([(random_adapter(0), 1.0)], on_progress=lambda *words: told.append(words))
    assert told == [(done, 4, name) for done, name in enumerate(NAMES, start=1)]
