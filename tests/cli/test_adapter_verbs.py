"""The verbs on adapter files: what they print, what they write, and what they refuse with one clear line."""

import json

import pytest
import torch
from corpus import CASES

from reelora.adapters import Adapter, Pair, largest_difference, merge, read_adapter, write_adapter
from reelora.pocket import MODEL
from reelora.tensorio import open_tensors, write_tensors

NAMES = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(2) for leaf in ("to_q", "to_v")]
WIDTH = 192


def make_adapter(seed=0, scale=0.5, rank=4):
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(torch.randn(rank, WIDTH, generator=generator), torch.randn(WIDTH, rank, generator=generator), scale)
        for name in NAMES
    }
    provenance = {"trigger_words": "twinkle"}
    return Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test", provenance=provenance)


@pytest.fixture
def style(tmp_path):
    write_adapter(make_adapter(), tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.fixture
def motion(tmp_path):
    write_adapter(make_adapter(1, scale=1.0, rank=2), tmp_path / "motion.safetensors")
    return tmp_path / "motion.safetensors"


@pytest.fixture
def unknown(tmp_path):
    return next(case for case in CASES if case.name == "diffusers, silent").make(tmp_path)


def test_inspect_says_what_an_adapter_is_without_reading_values(reelora, style):
    out = reelora("inspect", style).out
    for text in ("diffusers", "pocket alone", "0.5", "lora_adapter_metadata", "twinkle", "4 (4)"):
        assert text in out
    assert "content" not in out
    facts = json.loads(reelora("inspect", style, "--json").out)
    assert (facts["modules"], facts["base"], facts["scales"]) == (4, ["pocket"], [0.5])


def test_inspect_deep_reads_values_and_hashes_and_draws_them(reelora, style, tmp_path):
    facts = json.loads(reelora("inspect", style, "--deep", "--json").out)
    assert len(facts["content_hash"]) == len(facts["sshs_model_hash"]) == 64
    assert [row["effective_rank"] for row in facts["values"]] == [4] * 4
    out = reelora("inspect", style, "--deep").out
    assert "effective rank: 4 everywhere" in out
    assert "norm of the update, block by block" in out
    assert reelora("inspect", style, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "twinkle" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_heat_map_of_a_deep_model_fits_80_columns_and_shows_every_block(reelora, tmp_path):
    draw = torch.Generator().manual_seed(0)
    names = [f"transformer.transformer_blocks.{i}.attn1.{leaf}" for i in range(100) for leaf in ("to_q", "to_out.0")]
    pairs = {name: Pair(torch.ones(1, 8), torch.rand(8, 1, generator=draw) + 0.5, 1.0) for name in names}
    write_adapter(Adapter(pairs=pairs, spec=None, layout="memory", scale_source="a test"), tmp_path / "deep.safetensors")
    out = reelora("inspect", tmp_path / "deep.safetensors", "--deep").out
    map_of_strength = out.partition("block by block:\n")[2].splitlines()
    assert max(map(len, map_of_strength)) <= 80
    cells = [line for line in map_of_strength if line.startswith("    ")]
    assert sum(len(line) - 4 for line in cells) == len(names)


def test_norms_are_shown_also_while_the_scale_is_unknown(reelora, unknown):
    out = reelora("inspect", unknown, "--deep").out
    assert "norm of B @ A (nobody knows the scale), block by block" in out
    assert ": 0 to 0" not in out
    assert json.loads(reelora("inspect", unknown, "--deep", "--json").out)["values"][0]["norm"] is None


def test_others_metadata_and_stored_hashes_are_shown_and_the_hashes_checked(reelora, tmp_path):
    kohya, changed = next(case for case in CASES if case.name == "kohya").make(tmp_path), tmp_path / "changed.safetensors"
    truth = json.loads(reelora("inspect", kohya, "--deep", "--json").out)["sshs_model_hash"]
    stored = {"ss_sd_scripts_commit_hash": "12ab", "modelspec.trigger_phrase": "a star, twinkle"}
    stored |= {"sshs_model_hash": truth, "modelspec.hash_sha256": f"0x{truth}", "sshs_legacy_hash": "12345678"}
    tensors = dict(open_tensors(kohya))
    write_tensors(tmp_path / "told.safetensors", tensors, metadata=stored)
    write_tensors(changed, {name: tensor * 2 for name, tensor in tensors.items()}, metadata=stored)

    out = reelora("inspect", tmp_path / "told.safetensors").out
    for text in (truth, "12345678", "12ab", "sd-scripts, by the header's", "a star, twinkle"):
        assert text in out
    facts = json.loads(reelora("inspect", tmp_path / "told.safetensors", "--deep", "--json").out)
    assert facts["hashes_right"] == ["sshs_model_hash", "modelspec.hash_sha256"]
    facts = json.loads(reelora("inspect", changed, "--deep", "--json").out)
    assert facts["hashes_right"] == []
    assert [text for text in facts["advice"] if text.startswith("The file's sshs_model_hash is not that of its tensors")]


def test_the_content_hash_is_the_same_in_every_layout(reelora, style, tmp_path):
    reelora("convert", style, tmp_path / "other.safetensors", "--to", "kohya")
    hashes = [json.loads(reelora("inspect", file, "--deep", "--json").out) for file in (style, tmp_path / "other.safetensors")]
    assert hashes[0]["content_hash"] == hashes[1]["content_hash"]
    assert hashes[0]["sshs_model_hash"] != hashes[1]["sshs_model_hash"]


def test_inspect_beside_a_base_tells_relative_norms_and_what_fusing_would_lose(reelora, style):
    rows = json.loads(reelora("inspect", style, "--base", MODEL, "--json").out)["values"]
    assert all(row["relative_norm"] > 0 and 0 <= row["fused_loss"] < 0.5 for row in rows)
    out = reelora("inspect", style, "--base", "pocket").out
    for text in ("|dW| / |W|: ", "share lost if fused into bfloat16: ", "stores no fingerprint of its base"):
        assert text in out


def test_programs_can_read_what_is_said_beside_a_base_of_zeros(reelora, style, tmp_path):
    """A ratio to nothing is infinite, which JSON has no word for."""
    write_tensors(
        tmp_path / "zeros.safetensors",
        {f"{name.removeprefix('transformer.')}.weight": torch.zeros(WIDTH, WIDTH) for name in NAMES},
    )
    out = reelora("inspect", style, "--base", tmp_path / "zeros.safetensors", "--json").out
    rows = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["values"]
    assert [row["relative_norm"] for row in rows] == [None] * len(NAMES)


def test_a_page_that_is_there_is_found_before_the_values_are_read(reelora, style, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    result = reelora("inspect", style, "--html", tmp_path / "page.html")
    assert (result.code, result.err.splitlines()) == (
        2,
        [f"reelora: {tmp_path / 'page.html'} is there already and is left as it is; name another file or delete it."],
    )


def test_inspect_warns_in_plain_words(reelora, unknown):
    result = reelora("inspect", unknown)
    assert (result.code, "! Nothing says how strong" in result.out) == (0, True)
    assert "scales" in result.out
    assert "alpha=2, as given" in reelora("inspect", unknown, "--alpha", 2).out


def test_convert_tells_its_proof_and_keeps_the_adapter(reelora, style, tmp_path):
    result = reelora("convert", style, tmp_path / "style", "--to", "peft")
    assert result.code == 0
    assert "largest relative difference 0.0e+00" in result.err
    assert largest_difference(read_adapter(style), read_adapter(tmp_path / "style")) == 0.0


def test_convert_wants_to_know_the_strength_of_a_silent_file(reelora, unknown, tmp_path):
    result = reelora("convert", unknown, tmp_path / "out.safetensors", "--to", "comfyui")
    assert (result.code, "alpha=" in result.err) == (2, True)
    assert not (tmp_path / "out.safetensors").exists()
    assert reelora("convert", unknown, tmp_path / "out.safetensors", "--alpha", 2).code == 0


def test_merge_is_the_sum_at_the_strengths(reelora, style, motion, tmp_path):
    result = reelora("merge", tmp_path / "both.safetensors", "-a", f"{style}=0.7", "-a", f"{motion}=-0.5")
    assert result.code == 0
    both = read_adapter(tmp_path / "both.safetensors")
    expected = merge([(read_adapter(style), 0.7), (read_adapter(motion), -0.5)])
    assert largest_difference(expected, both) == 0.0
    torch.testing.assert_close(
        both.delta(NAMES[0]), 0.7 * make_adapter().delta(NAMES[0]) - 0.5 * read_adapter(motion).delta(NAMES[0])
    )


def test_resize_says_what_it_keeps(reelora, style, tmp_path):
    result = reelora("resize", style, tmp_path / "small.safetensors", "--rank", 2)
    assert "share of the energy kept" in result.err
    assert read_adapter(tmp_path / "small.safetensors").ranks == (2,)
    sized = reelora("resize", style, tmp_path / "sized.safetensors", "--size", "20kB", "--json")
    told = json.loads(sized.out)
    assert told["modules"].keys() == set(NAMES)
    assert all(0 < row["kept"] <= 1 and 1 <= row["rank"] <= 4 for row in told["modules"].values())
    worst = min(NAMES, key=lambda name: told["modules"][name]["kept"])
    assert f"in {worst}" in sized.err
    assert sum(p.a.nbytes + p.b.nbytes for p in read_adapter(tmp_path / "sized.safetensors").pairs.values()) <= 20_000


def test_extract_finds_the_adapter_that_was_added_to_a_model(reelora, model, style, tmp_path):
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.float() for name, tensor in open_tensors(file).items()}
    adapter = read_adapter(style)
    write_tensors(tmp_path / "base.safetensors", weights)
    tuned = dict(weights)
    for name in NAMES:
        key = f"{name.removeprefix('transformer.')}.weight"
        tuned[key] = tuned[key] + adapter.delta(name)
    write_tensors(tmp_path / "tuned.safetensors", tuned)
    out = tmp_path / "found.safetensors"
    assert reelora("extract", tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", out, "--rank", 4).code == 0
    assert largest_difference(adapter, read_adapter(out)) < 1e-4  # float32 rounding of W + dW
    matches = {
        name: json.loads(reelora("inspect", out, "--base", base, "--json").out)["base_match"]
        for name, base in {"its own": "pocket", "the tuned one": tmp_path / "tuned.safetensors"}.items()
    }
    assert matches["its own"] == "the weights that it was trained on"
    assert "another fine-tune" in matches["the tuned one"]


def test_extract_knows_the_pocket_model_by_its_name(reelora, model, tmp_path):
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in open_tensors(file).items()}
    weights["proj_out.weight"][0] += 1
    write_tensors(file, weights)
    out = tmp_path / "found.safetensors"
    assert reelora("extract", "pocket", model, out, "--rank", 1).code == 0
    found = read_adapter(out)
    assert list(found.pairs) == ["transformer.proj_out"]
    assert found.provenance["base_model"] == "pocket"


def test_diff_names_the_modules_that_differ_most(reelora, style, motion):
    assert "they are the same" in reelora("diff", style, style).out
    answer = json.loads(reelora("diff", style, motion, "--json").out)
    assert set(answer["modules"]) == set(NAMES)
    assert "by block" in reelora("diff", style, motion).out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("convert", "{style}", "{tmp}/a.bin"), "say the layout with --to"),
        (("convert", "{style}", "{style}"), "is there already"),
        (("convert", "{style}", "{tmp}/a.safetensors", "--to", "kohia"), "did you mean 'kohya'"),
        (("convert", "{style}", "{tmp}/a.safetensors", "--dtype", "fp8"), "No dtype is called"),
        (("convert", "{tmp}/none.safetensors", "{tmp}/a.safetensors"), "none.safetensors"),
        (
            ("convert", "{tmp}/none.safetensors", "{tmp}/nowhere/a.safetensors"),
            "nowhere: There is no such folder; make it first",
        ),
        (("convert", "{tmp}/none.safetensors", "{tmp}/a.safetensors", "--to", "sat"), "has to end in .pt"),
        (("inspect", "~nobody-of-this-name/a.safetensors"), "~nobody-of-this-name"),
        (("merge", "{tmp}/a.safetensors", "-a", "{style}", "--method", "ties"), "density="),
        (("merge", "{tmp}/a.safetensors", "-a", "{style}=x"), "has to be a number"),
        (("resize", "{style}", "{tmp}/a.safetensors"), "rank"),
        (("resize", "{style}", "{tmp}/a.safetensors", "--size", "huge"), "write a number and a unit"),
        (("extract", "{style}", "{motion}", "{tmp}/a.safetensors", "--rank", "2"), "transformer"),
        (("inspect", "{style}", "--base", "{motion}"), "do not fit this base"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_leaves_nothing(reelora, style, motion, tmp_path, files, command, message):
    before = files()
    result = reelora(*(part.format(style=style, motion=motion, tmp=tmp_path) for part in command))
    assert (result.code, message in result.err) == (2, True), result.err
    assert files() == before
