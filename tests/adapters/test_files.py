"""Laws of adapter files: what is written is read again, and nothing doubtful is read at all."""

import json

import peft
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from reelora.adapters import Adapter, LoraSpec, Pair, largest_difference, read_adapter, write_adapter
from reelora.errors import AdapterError, ConfigError, ReeloraError

Q = "transformer.transformer_blocks.0.attn1.to_q"


def save(path, tensors, header=None, **metadata):
    """A file as other programs write it: ``header`` is the content of lora_adapter_metadata."""
    if header is not None:
        metadata["lora_adapter_metadata"] = header if isinstance(header, str) else json.dumps(header)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path


def tensors(name=Q, rank=4, out=6, inp=8):
    return {f"{name}.lora_A.weight": torch.ones(rank, inp), f"{name}.lora_B.weight": torch.ones(out, rank)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_again_bit_for_bit(make, path, dtype):
    adapter = make(dtype=dtype, provenance={"base": "ab12", "trigger_words": "a st\u00e4r", "data": ""})
    assert write_adapter(adapter, path) == 0.0
    again = read_adapter(path)
    assert largest_difference(adapter, again) == 0.0
    assert all(again.pairs[name].a.dtype == dtype for name in adapter.pairs)
    assert (again.spec, again.provenance, again.layout) == (adapter.spec, adapter.provenance, "diffusers")


def test_a_folder_with_exactly_one_file_is_as_good_as_the_file(adapter, path):
    write_adapter(adapter, path)
    assert largest_difference(adapter, read_adapter(path.parent)) == 0.0
    write_adapter(adapter, path.with_name("second.safetensors"))
    with pytest.raises(AdapterError, match=r"second\.safetensors"):
        read_adapter(path.parent)


def test_reading_reads_no_values(adapter, path):
    sick = Adapter(
        pairs={Q: Pair(torch.full((4, 8), torch.nan), torch.ones(6, 4), 1.0)}, spec=None, layout="memory", scale_source="a test"
    )
    save(path, {f"{Q}.lora_A.weight": sick.pairs[Q].a, f"{Q}.lora_B.weight": sick.pairs[Q].b})
    read_adapter(path, alpha=4)
    with pytest.raises(AdapterError, match="NaN"):
        write_adapter(sick, path)


def test_without_a_word_about_alpha_the_scale_is_unknown(path):
    adapter = read_adapter(save(path, tensors()))
    assert adapter.pairs[Q].scale is None
    assert adapter.spec is None
    assert adapter.scale_source.startswith("unknown")


@pytest.mark.parametrize("header", [{}, {"transformer.r": 4}, {"unet.r": 4, "unet.lora_alpha": 2}])
def test_a_header_that_does_not_tell_this_roles_alpha_tells_nothing(path, header):
    assert read_adapter(save(path, tensors(), header)).pairs[Q].scale is None


def test_the_header_tells_the_scale(path):
    adapter = read_adapter(save(path, tensors(), {"transformer.r": 4, "transformer.lora_alpha": 3}))
    assert (adapter.pairs[Q].scale, adapter.scale_source) == (0.75, "the file's lora_adapter_metadata")
    assert adapter.spec == LoraSpec(rank=4, alpha=3, target_modules=(Q.removeprefix("transformer."),))


def test_the_header_may_speak_of_single_modules_and_of_rslora(path):
    header = {
        "transformer.r": 16,
        "transformer.lora_alpha": 8,
        "transformer.rank_pattern": {"to_q": 4},
        "transformer.alpha_pattern": {"^transformer_blocks.0.attn1.to_q": 6},
        "transformer.use_rslora": True,
        "transformer.from_a_newer_peft": 3,
    }
    assert read_adapter(save(path, tensors(), header)).pairs[Q].scale == 6 / 4**0.5


def test_alpha_given_by_the_caller_decides(path):
    silent = read_adapter(save(path, tensors()), alpha=2)
    assert (silent.pairs[Q].scale, silent.scale_source) == (0.5, "alpha=2, as given")
    assert silent.spec == LoraSpec(rank=4, alpha=2, target_modules=(Q.removeprefix("transformer."),))
    header = {"transformer.r": 4, "transformer.lora_alpha": 64, "transformer.use_rslora": True}
    assert read_adapter(save(path, tensors(), header), alpha=2).pairs[Q].scale == 1.0  # rsLoRA stays: 2 / sqrt(4)


def test_alpha_is_divided_by_each_modules_own_rank(path):
    other = Q.replace("to_q", "to_k")
    adapter = read_adapter(save(path, {**tensors(), **tensors(other, rank=2)}), alpha=2)
    assert (adapter.pairs[Q].scale, adapter.pairs[other].scale) == (0.5, 1.0)


def test_a_named_producer_tells_the_scale_of_a_silent_file(path):
    assert read_adapter(save(path, tensors(rank=128)), producer="cogvideo-finetune").pairs[Q].scale == 0.5
    assert read_adapter(save(path, tensors(rank=4)), producer="sat").pairs[Q].scale == 0.25


def test_a_producer_that_contradicts_the_file_is_refused(path):
    with pytest.raises(AdapterError, match=r"cogvideo-finetune always uses rank 128, the file has 4"):
        read_adapter(save(path, tensors()), producer="cogvideo-finetune")
    with pytest.raises(AdapterError, match=r"1 pairs have another scale by the file than by sat"):
        read_adapter(save(path, tensors(), {"transformer.r": 4, "transformer.lora_alpha": 4}), producer="sat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": 1, "producer": "sat"}, "not both"),
        ({"producer": "cogvideo"}, "did you mean 'cogvideo-finetune'"),
    ],
)
def test_impossible_arguments_are_refused(path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_adapter(save(path, tensors()), **arguments)


def test_an_adapter_of_several_roles_keeps_each_ones_strength(path, tmp_path):
    unet, text = "unet.down_blocks.0.attn1.to_q", "text_encoder.layers.0.q_proj"
    header = {"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 2, "text_encoder.lora_alpha": 2}
    adapter = read_adapter(save(path, {**tensors(unet), **tensors(text, rank=2)}, header))
    assert (adapter.pairs[unet].scale, adapter.pairs[text].scale) == (0.5, 1.0)
    assert adapter.roles == ("unet", "text_encoder")
    write_adapter(adapter, tmp_path / "again.safetensors")
    assert largest_difference(adapter, read_adapter(tmp_path / "again.safetensors")) == 0.0


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(B), rf"1 pairs lack their other half: {Q} lacks B"),
        (lambda t: t.update(stray=torch.ones(1)), "1 tensors have names that this layout has not: 'stray'"),
        (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(6)}), "1 tensors are no LoRA but a bias"),
        (lambda t: t.update({f"{Q}.dora_scale": torch.ones(5, 1)}), r"dora_scale is \(5, 1\)"),
        (
            lambda t: t.update({"../transformer.x.lora_A.weight": torch.ones(1, 1)}),
            "1 tensors have names that this layout has not",
        ),
        (lambda t: t.update({A: torch.ones(3, 8)}), r"1 pairs do not fit together: .*\(3, 8\) and B \(6, 4\)"),
        (lambda t: t.update({A: torch.ones(4, 8, 1, 1)}), "both have to be matrices"),
        (lambda t: t.update({A: torch.ones(4, 0)}), "without an empty side"),
        (lambda t: t.update({B: torch.ones(0, 4)}), "without an empty side"),
        (lambda t: t.update({A: torch.ones(4, 8, dtype=torch.int8)}), rf"1 modules hold values .*{Q} \(A is torch.int8\)"),
        (lambda t: t.update({B: torch.ones(6, 4, dtype=torch.bool)}), r"B is torch.bool"),
        (lambda t: t.update({B: torch.ones(6, 4, dtype=torch.complex64)}), r"B is torch.complex64"),
        (lambda t: t.update({f"{Q}.alpha": torch.ones((), dtype=torch.complex64)}), r"alpha is torch.complex64"),
        (lambda t: t.update({f"{Q}.alpha": torch.ones((), dtype=torch.bool)}), r"alpha is torch.bool"),
        (lambda t: t.clear(), "no pair at all"),
    ],
)
def test_every_doubtful_set_of_tensors_is_refused(path, change, message):
    doubtful = tensors()
    change(doubtful)
    with pytest.raises(AdapterError, match=message):
        read_adapter(save(path, doubtful), alpha=1)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"r": 8, "lora_alpha": 4},
            r"1 pairs have another rank than the file's lora_adapter_metadata says: .*to_q \(4, not 8\)",
        ),
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, "says use_dora, but 1 of 1 modules have no norms of a DoRA"),
        ({"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}, "also changed the base's weights"),
        ({"r": 4, "lora_alpha": 4, "bias": "all"}, "bias='all'"),
        ({"r": 4, "lora_alpha": -1}, "alpha is -1"),
        ({"r": "4", "lora_alpha": 1}, "rank is '4'"),
        ({"r": 4, "lora_alpha": 1, "rank_pattern": {"(a+)+": 4}}, "no pattern for module paths"),
        ({"r": 4, "lora_alpha": 1, "rank_pattern": {"a{1,99999999999999999999}": 4}}, "no pattern for module paths"),
        ({"r": 4, "lora_alpha": 1, "peft_type": "IA3"}, "peft_type='IA3': of PEFT's methods only LORA, LOHA, LOKR"),
        ({"r": 4, "peft_type": "BOFT"}, "peft_type='BOFT'"),
        ({"r": 4, "lora_alpha": 1, "rank_pattern": [4]}, "rank_pattern is"),
        ({"r": 4, "lora_alpha": 1, "target_modules": [3]}, "target_modules holds 3"),
    ],
)
def test_a_header_that_cannot_be_is_refused(path, header, message):
    packed = {f"transformer.{name}": value for name, value in header.items()}
    with pytest.raises(AdapterError, match=message):
        read_adapter(save(path, tensors(), packed))


@pytest.mark.timeout(10)
def test_an_expression_that_would_match_for_ever_is_never_matched(path, tmp_path):
    """Both forms take longer than the universe is old on a path of 50 letters."""
    for hostile in (r"([a-z0-9_.]+)+!", r"(a|[a-z0-9_.]|.)*!"):
        header = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.target_modules": hostile}
        adapter = read_adapter(save(path, tensors(), header))
        assert adapter.spec == LoraSpec(rank=4, alpha=2, target_modules=(Q.removeprefix("transformer."),))
        write_adapter(adapter, tmp_path / "again.safetensors")


@pytest.mark.parametrize("targets", [r".*attn1\.to_(q|k)", "all-linear", "", ["to_q", "to_k"], None])
def test_whatever_form_the_targets_have_peft_is_told_the_same_modules(path, targets):
    other = Q.replace("to_q", "to_k")
    header = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.target_modules": targets}
    spec = read_adapter(save(path, {**tensors(), **tensors(other)}, header)).spec
    assert spec is not None
    config = peft.LoraConfig(**spec.to_peft_dict())
    blocks = [f"transformer_blocks.0.attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "norm_q")]
    meant = [name for name in blocks if check_target_module_exists(config, name)]
    assert meant == [name for name in blocks if spec.targets(name)] == blocks[:2]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(path, text):
    with pytest.raises(AdapterError, match="lora_adapter_metadata"):
        read_adapter(save(path, tensors(), text))


def test_everything_wrong_is_listed_at_once(path):
    wrong = {**tensors(), "stray": torch.ones(1), "unet.x.lora_A.weight": torch.ones(1, 1)}
    with pytest.raises(AdapterError) as caught:
        read_adapter(save(path, wrong, {"transformer.r": 4, "transformer.lora_alpha": 0}))
    assert all(part in str(caught.value) for part in ("stray", "unet.x lacks B", "alpha is 0", str(path)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "target_modules", "bias", "use_dora",
    "lora_dropout",
]  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_header_whatever_crashes_or_gives_a_scale_that_it_does_not_tell(path, header):
    packed = {f"transformer.{name}": value for name, value in ({"r": 4, "lora_alpha": 2} | header).items()}
    try:
        adapter = read_adapter(save(path, tensors(), packed))
    except ReeloraError:
        return
    scale = adapter.pairs[Q].scale
    assert scale is None or scale > 0


def test_a_missing_file_is_an_oserror(path):
    with pytest.raises(FileNotFoundError):
        read_adapter(path)


def test_a_file_that_cannot_be_written_leaves_nothing(adapter, path):
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        write_adapter(adapter, path.with_suffix(".pt"))
    with pytest.raises(ConfigError, match="did you mean 'diffusers'"):
        write_adapter(adapter, path, layout="diffuser")
    with pytest.raises(OSError, match="no such folder"):
        write_adapter(adapter, path.parent / "nowhere" / "a.safetensors")
    assert list(path.parent.iterdir()) == []
