"""Text encoders of Stable Diffusion trained with the UNet: from a setting to one file, resumed to the last bit."""

import json

import pytest
import torch
from stills import SIDE, draw_stills, sample_of_text, save_still_model
from watching import Watching

from reelora import recipes
from reelora.adapters import read_adapter
from reelora.components import load_components
from reelora.errors import ConfigError, MismatchError
from reelora.lora import Rack
from reelora.recipes import Silent, TrainConfig
from reelora.train import read_metrics

PIPELINES = {"SD 1.5": "StableDiffusionPipeline", "SDXL": "StableDiffusionXLPipeline"}
ROLES = {"SD 1.5": ("unet", "text_encoder"), "SDXL": ("unet", "text_encoder", "text_encoder_2")}


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    return draw_stills(tmp_path_factory.mktemp("stills") / "drawn")


@pytest.fixture(scope="module", params=PIPELINES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    return save_still_model(kind, tmp_path_factory.mktemp("model") / "it")


@pytest.fixture
def config_of(model, stills, tmp_path):
    def make(output="run", *, steps=4, **groups):
        settings = {
            "model": str(model),
            "output": tmp_path / output,
            "device": "cpu",
            "tensorboard": False,
            "data": {"folder": stills, "media": "images", "height": SIDE, "width": SIDE, "held_out": 2},
            "lora": {"rank": 2, "alpha": 2},
            "text_encoder": {"rank": 3, "alpha": 6},
            "loop": {"steps": steps, "checkpoint_every": 2, "evaluate_every": 0, "optimizer": {"learning_rate": 1e-2}},
        }
        return TrainConfig.of({**settings, **groups})

    return make


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def test_one_file_holds_all_roles_and_gives_the_same_pictures_in_the_stock_pipeline(kind, config_of):
    import diffusers

    config = config_of()
    outcome = recipes.train(config, listener=Silent())
    adapter = read_adapter(outcome.adapter)
    assert adapter.roles == ROLES[kind]
    assert {name.partition(".")[0]: pair.rank for name, pair in adapter.pairs.items()} == dict.fromkeys(ROLES[kind], 3) | {
        "unet": 2
    }
    stories = {role: [pair for name, pair in adapter.pairs.items() if name.startswith(f"{role}.")] for role in adapter.roles}
    assert all(any(pair.b.any() for pair in pairs) for pairs in stories.values())
    parts = load_components(config.model)
    rack = Rack(parts)
    rack.load("it", outcome.adapter)
    plain = sample_of_text(parts.pipeline())
    with rack.using({"it": 1.0}):
        shown = sample_of_text(parts.pipeline())
    stock = getattr(diffusers, PIPELINES[kind]).from_pretrained(config.model, safety_checker=None)
    stock.load_lora_weights(str(outcome.adapter.parent), weight_name=outcome.adapter.name)
    torch.testing.assert_close(sample_of_text(stock), shown, rtol=0, atol=1e-5)
    assert (shown - plain).abs().max() > 1e-3


def test_unet_and_text_encoders_alone_are_in_memory(kind, config_of, alive):
    listener = Watching(alive)
    assert recipes.train(config_of(), listener=listener).result.is_complete
    assert listener.found == [set(ROLES[kind])] * 4


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(config_of):
    whole, parts = config_of("whole"), config_of("parts", steps=2)
    recipes.train(whole, listener=Silent())
    recipes.train(parts, listener=Silent())
    resumed = recipes.train(config_of("parts"), listener=Silent())
    assert resumed.result.resumed_from == 2
    assert losses(parts.output) == losses(whole.output)
    one, other = (read_adapter(config.output / "adapter.safetensors") for config in (whole, parts))
    assert all(torch.equal(one.pairs[name].b, other.pairs[name].b) for name in one.pairs)


def learned_by(adapter, role):
    """The largest change of each layer of a role, which after one step of AdamW is its rate.

    SDXL does not hear the last layer of its first encoder.
    """
    changes = [float(pair.b.abs().max()) for name, pair in read_adapter(adapter).pairs.items() if name.startswith(f"{role}.")]
    return [change for change in changes if change]


def test_text_encoders_may_learn_at_a_rate_of_their_own(kind, config_of):
    rate = {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0}
    config = config_of(text_encoder={"rank": 3, "learning_rate": 2e-3}, loop={"steps": 1, "optimizer": rate})
    adapter = recipes.train(config, listener=Silent()).adapter
    for role, expected in {role: 1e-2 if role == "unet" else 2e-3 for role in ROLES[kind]}.items():
        found = learned_by(adapter, role)
        assert found
        assert found == pytest.approx([expected] * len(found), rel=1e-2)


def test_a_run_with_two_rates_that_was_stopped_goes_on_to_the_same_bits(config_of):
    text_encoder = {"rank": 3, "alpha": 6, "learning_rate": 2e-3}
    whole, parts = config_of("whole", text_encoder=text_encoder), config_of("parts", steps=2, text_encoder=text_encoder)
    recipes.train(whole, listener=Silent())
    recipes.train(parts, listener=Silent())
    assert recipes.train(config_of("parts", text_encoder=text_encoder), listener=Silent()).result.resumed_from == 2
    assert losses(parts.output) == losses(whole.output)
    one, other = (read_adapter(config.output / "adapter.safetensors") for config in (whole, parts))
    assert all(torch.equal(one.pairs[name].b, other.pairs[name].b) for name in one.pairs)
    with pytest.raises(ConfigError, match=r"text_encoder.*learning_rate"):
        recipes.train(config_of("parts"), listener=Silent())


def test_the_rate_of_the_loop_is_no_part_of_what_a_run_is(config_of):
    """So that the folder of a run from before there was such a setting goes on."""
    config = config_of(text_encoder={"rank": 3, "alpha": 6})
    recipes.train(config, listener=Silent())
    manifest = json.loads((config.output / "checkpoints" / "step-000004" / "manifest.json").read_text())
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert manifest["identity"]["text_encoder"][0] == {"rank": 3, "alpha": 6, "target_modules": targets}
    assert len(manifest["optimizer"]["param_groups"]) == 1


def test_prodigy_has_one_rate_for_all(config_of):
    prodigy = {"kind": "prodigy", "learning_rate": 1.0}
    with pytest.raises(ConfigError, match=r"prodigy finds one rate.*text_encoder\.learning_rate"):
        config_of(text_encoder={"rank": 3, "learning_rate": 1e-4}, loop={"optimizer": prodigy})
    trained = recipes.train(config_of(text_encoder={"rank": 3}, loop={"steps": 2, "optimizer": prodigy}), listener=Silent())
    assert trained.result.is_complete


def test_another_run_is_refused(config_of):
    recipes.train(config_of(), listener=Silent())
    for text_encoder in ({"rank": 0}, {"rank": 3, "alpha": 3}):
        with pytest.raises(ConfigError, match="text_encoder"):
            recipes.train(config_of(text_encoder=text_encoder), listener=Silent())


def test_a_run_goes_on_with_the_adapter_of_another(config_of):
    first = recipes.train(config_of("first"), listener=Silent())
    second = config_of("second", init_from=str(first.adapter))
    recipes.train(second, listener=Silent())
    ended = [row["held_out_loss"] for row in read_metrics(first.adapter.parent / "metrics.jsonl") if "held_out_loss" in row][-1]
    began = next(row["held_out_loss"] for row in read_metrics(second.output / "metrics.jsonl") if "held_out_loss" in row)
    assert began == ended
    with pytest.raises(MismatchError, match="have no branch"):
        recipes.train(config_of("third", init_from=str(first.adapter), text_encoder={"rank": 0}), listener=Silent())
    alone = recipes.train(config_of("alone", text_encoder={"rank": 0}), listener=Silent())
    with pytest.raises(MismatchError, match="is of unet, and what is trained is unet, text_encoder"):
        recipes.train(config_of("fourth", init_from=str(alone.adapter)), listener=Silent())


def test_what_a_trained_encoder_hears_at_first_is_what_the_cache_holds(config_of):
    """The branches do nothing yet: the held-out loss of step 0 is that of a run without them."""
    began = []
    for output, rank in (("with", 3), ("without", 0)):
        config = config_of(output, text_encoder={"rank": rank}, steps=1, precision="fp32")
        recipes.train(config, listener=Silent())
        began.append(
            next(row["held_out_loss"] for row in read_metrics(config.output / "metrics.jsonl") if "held_out_loss" in row)
        )
    assert began[0] == pytest.approx(began[1], rel=1e-6)


def test_an_encoder_of_cogvideox_takes_no_adapter(stills, tmp_path):
    config = TrainConfig.of({"model": "pocket", "output": tmp_path / "run", "text_encoder": {"rank": 2}, "device": "cpu"})
    with pytest.raises(ConfigError, match="pocket is no Stable Diffusion"):
        recipes.train(config, listener=Silent())
    assert not config.output.exists()
