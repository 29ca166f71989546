"""UNets for still images, through the same loop and the same attach as videos."""

import copy
from typing import Any

import peft
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from stills import (
    CAPTIONS,
    build_still_pipeline,
    build_unet,
    conditions_of,
    give_text_encoder,
    sample,
    sample_of_text,
    write_stills,
)

from reelora.adapters import LoraSpec, write_adapter
from reelora.errors import ConfigError
from reelora.lora import attach, collect
from reelora.train import (
    Diffusion,
    Lesson,
    LoopConfig,
    TimestepConfig,
    TokenCondition,
    WithText,
    collect_all,
    loss_weights,
    read_verdicts,
    train,
)
from reelora.train.batches import Batches
from reelora.train.objective import Objective

KINDS = ["SD 1.5", "SDXL"]
CONFIG = LoopConfig.of(
    {
        "steps": 200,
        "batch_size": 2,
        "checkpoint_every": 200,
        "evaluate_every": 0,
        "optimizer": {"learning_rate": 1e-2},
        "timesteps": {"weighting": "min_snr"},
    }
)


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    return write_stills(tmp_path_factory.mktemp("stills") / "drawn")


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_learns_drawn_pictures_and_its_file_works_in_the_stock_pipeline(kind, stills, tmp_path):
    """Held-out pictures are predicted better, beyond the interval, and the file gives the pictures that training ended with."""
    unet = build_unet(kind)
    base = copy.deepcopy(unet)
    summary = attach(unet, LoraSpec(rank=8, alpha=4))
    assert {path.rpartition("attn")[2][0] for path in summary.shapes} == {"1", "2"}
    pipeline = build_still_pipeline(kind, unet)
    clips, held_out = stills.split(4, seed=0)
    lesson = Lesson(
        model=unet,
        clips=clips,
        held_out=held_out,
        diffusion=Diffusion.of(pipeline.scheduler),
        identity={},
        conditions=conditions_of(kind),
    )
    assert train(lesson, CONFIG, tmp_path / "run").is_complete
    assert read_verdicts(tmp_path / "run")[-1].gain.low > 0
    write_adapter(collect(unet), tmp_path / "adapter.safetensors")
    stock = build_still_pipeline(kind, base)
    plain = sample(stock, kind)
    stock.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    shown = sample(stock, kind)
    torch.testing.assert_close(shown, sample(pipeline, kind), rtol=0, atol=1e-5)
    assert (shown - plain).abs().max() > 0.01


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_a_unet_equal_pefts(kind, prediction, stills):
    ours, scheduler = build_unet(kind), DDIMScheduler(prediction_type=prediction)
    theirs = copy.deepcopy(ours)
    spec = LoraSpec(rank=4, alpha=2)
    attach(ours, spec, seed=3)
    for name, parameter in ours.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    theirs.add_adapter(peft.LoraConfig(**spec.to_peft_dict()))
    for name, pair in collect(ours).pairs.items():
        layer = theirs.get_submodule(name.partition(".")[2])
        layer.lora_A["default"].weight.data.copy_(pair.a)
        layer.lora_B["default"].weight.data.copy_(pair.b)
    batch = Batches(stills, CONFIG, num_timesteps=1000, frame_group=1, conditions=conditions_of(kind)).read(0)
    losses = []
    for model in (ours, theirs):
        objective = Objective.of(model, Diffusion.of(scheduler), conditions_of(kind))
        loss = objective.errors(batch)[0].mean()
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # float32: the same products, summed in another order
    expected = {
        name.replace(".lora_A.default.weight", ".lora_a").replace(".lora_B.default.weight", ".lora_b"): p.grad
        for name, p in theirs.named_parameters()
        if p.grad is not None
    }
    actual = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    largest = max(grad.norm() for grad in expected.values())
    assert all((actual[name] - grad).norm() < 1e-5 * largest for name, grad in expected.items())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_asked_for_and_its_weight_are_those_of_diffusers_example(prediction):
    """examples/text_to_image/train_text_to_image_lora.py, with --snr_gamma 5."""
    from diffusers.training_utils import compute_snr

    scheduler, draw = DDIMScheduler(prediction_type=prediction), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 1, 4, 4, 4, generator=draw) for _ in range(2))
    diffusion = Diffusion.of(scheduler)
    times: Any = torch.tensor([1, 500, 999])
    target = {"epsilon": noise, "v_prediction": scheduler.get_velocity(clean, noise, times)}[prediction]
    torch.testing.assert_close(diffusion.target(clean, noise, times), target)
    snr = compute_snr(scheduler, times)
    theirs = torch.stack([snr, 5.0 * torch.ones_like(times)], dim=1).min(dim=1)[0]
    theirs = theirs / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(loss_weights(diffusion, times, TimestepConfig(weighting="min_snr")), theirs, rtol=1e-4, atol=0)
    assert loss_weights(diffusion, times, TimestepConfig()).tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"prediction_type": "sample"}, "cannot be trained"), ({"rescale_betas_zero_snr": True}, "nothing but noise")],
)
def test_a_schedule_that_cannot_be_learned_is_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Diffusion.of(DDIMScheduler(**options))


def test_sdxl_without_its_sizes_and_pooled_states_is_refused():
    with pytest.raises(ConfigError, match="pooled, time_ids"):
        Objective.of(build_unet("SDXL"), Diffusion.of(DDIMScheduler()))


def test_a_dropped_caption_drops_its_pooled_states_too(stills):
    conditions = conditions_of("SDXL")
    config = CONFIG.model_copy(update={"caption_dropout": 0.5, "batch_size": 8})
    batch = Batches(stills, config, num_timesteps=1000, frame_group=1, conditions=conditions).read(0)
    empty = [torch.equal(states, stills.empty_prompt_states) for states in batch.states]
    assert 0 < sum(empty) < 8
    assert [torch.equal(pooled, conditions[0].states[""]) for pooled in batch.extras["pooled"]] == empty


def test_a_text_encoder_is_trained_with_its_unet_and_one_file_works_in_the_stock_pipeline(stills, tmp_path):
    pipeline = give_text_encoder(build_still_pipeline("SD 1.5", build_unet("SD 1.5")))
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    stock = give_text_encoder(build_still_pipeline("SD 1.5", copy.deepcopy(unet)))
    attach(unet, LoraSpec(rank=4, alpha=2))
    attach(text_encoder, LoraSpec(rank=4, alpha=4, target_modules=("q_proj", "k_proj", "v_proj", "out_proj")))
    ids = pipeline.tokenizer(["", *CAPTIONS.values()], padding="max_length", return_tensors="pt").input_ids
    tokens = dict(zip(["", *CAPTIONS.values()], ids[:, None], strict=True))
    model = WithText(unet, text_encoder)
    clips, held_out = stills.split(4, seed=0)
    lesson = Lesson(
        model=model,
        clips=clips,
        held_out=held_out,
        diffusion=Diffusion.of(pipeline.scheduler),
        identity={},
        conditions=[TokenCondition(tokens=tokens)],
    )
    train(lesson, CONFIG.model_copy(update={"steps": 10, "checkpoint_every": 10}), tmp_path / "run")
    adapter = collect_all(model)
    assert adapter.roles == ("unet", "text_encoder")
    assert all(pair.b.any() for pair in adapter.pairs.values())
    write_adapter(adapter, tmp_path / "adapter.safetensors")
    stock.load_lora_weights(tmp_path, weight_name="adapter.safetensors")
    torch.testing.assert_close(sample_of_text(stock), sample_of_text(pipeline), rtol=0, atol=1e-5)
