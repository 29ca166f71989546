"""A run of the pocket model whose base is kept in less memory: what it says, that it goes on, and what its adapter fits."""

from pathlib import Path

import pytest
from pocket_runs import Lines, changed, small_config, write_films

from reelora import recipes
from reelora.adapters import BASE_SHAPES, BASE_VALUES, read_adapter
from reelora.components import load_components
from reelora.errors import ConfigError
from reelora.lora import Rack
from reelora.pocket import MODEL
from reelora.recipes import Silent
from reelora.train import read_metrics

LEFT = [
    {"base__stream": True},
    {"base__storage": "fp8"},
    {"base__storage": "int8", "base__stream": True},
    pytest.param({"base__storage": "nf4", "base__stream": True}, marks=pytest.mark.quantised),
]
IDS = ["streamed", "fp8", "int8 streamed", "nf4 streamed"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_films(tmp_path_factory.mktemp("clips"), 17, 17, 17)


@pytest.fixture
def config(clips, tmp_path):
    settings = {"loop__steps": 3, "loop__evaluate_every": 2, "data__held_out": 1, "lora__rank": 2}
    return small_config(tmp_path / "plain", clips, tensorboard=False, **settings)


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def started(config, folder, **settings):
    config = changed(config, output=config.output.parent / folder, **settings)
    recipes.train(config, listener=Silent())
    return config.output


@pytest.mark.parametrize("kept", LEFT, ids=IDS)
def test_a_run_over_a_stored_base_resumes_exactly_and_its_adapter_fits_the_true_base(config, kept):
    plain = started(config, "plain")
    whole = started(config, "whole", **kept)
    started(config, "parts", **kept, loop__steps=1)
    parts = started(config, "parts", **kept)
    assert len(losses(whole)) == 3
    assert losses(parts) == losses(whole)
    assert (losses(whole) == losses(plain)) == ("base__storage" not in kept)
    one, other = (read_adapter(folder / "adapter.safetensors") for folder in (whole, plain))
    assert {BASE_SHAPES, BASE_VALUES} <= other.provenance.keys()
    assert all(one.provenance[name] == other.provenance[name] for name in (BASE_SHAPES, BASE_VALUES))
    assert one.provenance.get("base_storage", "precision") == kept.get("base__storage", "precision")
    rack = Rack(load_components(MODEL, roles=["transformer"]).transformer)
    rack.load("learned", one, strict_base=True)
    assert rack.state.adapters[0].notes == ()


def test_a_run_may_be_streamed_from_one_start_to_the_next_but_keeps_its_storage(config):
    whole = started(config, "whole", base__storage="fp8")
    started(config, "parts", base__storage="fp8", loop__steps=1)
    with pytest.raises(ConfigError, match=r"base_storage.*fp8"):
        started(config, "parts", base__storage="int8")
    with pytest.raises(ConfigError, match=r"base_storage.*fp8"):
        started(config, "parts")
    parts = started(config, "parts", base__storage="fp8", base__stream=True)
    assert losses(parts) == losses(whole)


def test_what_the_base_takes_is_said_and_stands_in_the_report(config):
    lines = Lines()
    outcome = recipes.train(changed(config, base__storage="fp8", base__stream=True, loop__steps=1), listener=lines)
    said = [line for line in lines.said if line.startswith("stored")]
    assert any("MiB on cpu instead of" in line for line in said)
    assert any("fp8 changes weights by" in line and "slower" in line for line in said)
    assert any("saves nothing" in line for line in said)
    assert "fp8 changes weights by" in outcome.report.read_text()
    lines = Lines()
    recipes.train(changed(config, output=config.output.parent / "usual", loop__steps=1), listener=lines)
    assert not [line for line in lines.said if line.startswith("stored")]


def test_previews_are_made_with_a_stored_base(config):
    prompt = ["a red square stands still on a white background"]
    folder = started(
        config,
        "shown",
        base__storage="int8",
        base__stream=True,
        loop__steps=1,
        preview__prompts=prompt,
        preview__every=1,
        preview__steps=1,
    )
    assert len(list((folder / "previews").glob("*.mp4"))) == 2


def test_what_cannot_go_together_is_refused_before_any_work(config, monkeypatch):
    for other in ("shard_base", "compile"):
        with pytest.raises(ConfigError, match=rf"loop\.{other} .* leave it false, or leave base\.storage"):
            changed(config, base__stream=True, **{f"loop__{other}": True})
    monkeypatch.setattr("reelora.lora.storage.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="`pip install bitsandbytes`"):
        recipes.train(changed(config, base__storage="nf4"), listener=Silent())
    with pytest.raises(ConfigError, match=r"base\.storage"):
        changed(config, base__storage="fp4")
    assert not config.output.exists()
