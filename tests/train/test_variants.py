"""Every variant of CogVideoX is trained on what its pipeline shows it at inference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import CogVideoXImageToVideoPipeline
from oracle import GOLDEN
from sat import LORAS, base_of, yamls
from tiny_models import build_pipeline, build_transformer

from reelora.catalog import MODELS
from reelora.components import encode_image, load_components
from reelora.errors import ConfigError
from reelora.lora import TrainableLinear
from reelora.tensorio import open_tensors
from reelora.train import Diffusion, ImageCondition, LoopConfig, Prior, StoredImageCondition, TimestepConfig, noisy_image
from reelora.train.batches import Batch, Batches
from reelora.train.conditioning import Look, padded_with_zeros
from reelora.train.objective import Objective
from reelora.train.predict import frame_group, predictor_of

CASES = [path.stem for path in sorted((GOLDEN / "losses").glob("*.safetensors"))]
I2V_15: dict[str, Any] = {"in_channels": 8, "ofs_embed_dim": 8}
SIZES = [(9, 32, 32), (17, 32, 64), (5, 64, 32)]
"""Frames and pixels: as trained, landscape, portrait."""


def one_batch(clean, noise, timesteps, states, extras):
    weights = torch.ones(len(clean))
    return Batch(
        clean=clean, noise=noise, timesteps=timesteps, states=states, extras=extras, weights=weights, sources=("",) * len(clean)
    )


# Loss and gradients.


@pytest.mark.parametrize("case", CASES)
def test_the_objective_gives_sats_loss_and_gradients(case, tmp_path):
    path = GOLDEN / case / "transformer" if case in LORAS.values() else base_of(case, tmp_path)
    parts = load_components(path, roles=["transformer", "scheduler"], sat_config=yamls(case))
    model, recorded = parts.transformer, open_tensors(GOLDEN / "losses" / f"{case}.safetensors")
    branches = {path: branch for path, branch in model.named_modules() if isinstance(branch, TrainableLinear)}
    for branch in branches.values():
        branch.lora_a.requires_grad_(True)
        branch.lora_b.requires_grad_(True)
    objective = Objective(predictor_of(model), Diffusion.of(parts.scheduler), frame_group(model))
    extras = {"image": recorded["concat_images"]} if "concat_images" in recorded else {}
    batch = one_batch(recorded["latent"], recorded["noise"], recorded["idx"], recorded["context"], extras)
    loss = (objective.errors(batch)[0] * objective.weights(batch, TimestepConfig())).mean()
    assert float(loss.detach()) == pytest.approx(float(recorded["loss_mean"]), rel=1e-6)
    if branches:
        loss.backward()
    for name, branch in branches.items():
        for side, matrix in (("A", branch.lora_a), ("B", branch.lora_b)):
            wanted = recorded[f"grad.{sats_name(name, side)}"]
            assert matrix.grad is not None
            assert float((matrix.grad - wanted).norm() / wanted.norm()) < 1e-5


def sats_name(path, side):
    layer, leaf = path.split(".")[1], path.split("attn1.")[1]
    part = f"query_key_value.matrix_{side}.{'qkv'.index(leaf[-1])}" if leaf != "to_out.0" else f"dense.matrix_{side}.0"
    return f"model.diffusion_model.transformer.layers.{layer}.attention.{part}"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_is_that_of_diffusers_example(shift):
    """examples/cogvideo/train_cogvideox_lora.py: the output becomes a clip, whose error is weighted with 1 / (1 - a)."""
    pipeline = build_pipeline("5B")
    transformer = pipeline.transformer.requires_grad_(False)
    scheduler = pipeline.scheduler.from_config(pipeline.scheduler.config, snr_shift_scale=shift)
    draw = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 3, 4, 4, 4, generator=draw) for _ in range(2))
    times, states = torch.tensor([400, 900]), torch.randn(2, 8, 16, generator=draw)
    noisy = scheduler.add_noise(clean, noise, times)
    positions = pipeline._prepare_rotary_positional_embeddings(32, 32, 3, torch.device("cpu"))
    with torch.no_grad():
        output = transformer(noisy, states, times, image_rotary_emb=positions, return_dict=False)[0]
        guess = scheduler.get_velocity(output, noisy, times)
        weights = 1 / (1 - scheduler.alphas_cumprod[times]).view(-1, 1, 1, 1, 1)
        theirs = torch.mean((weights * (guess - clean) ** 2).reshape(2, -1), dim=1)
        objective = Objective.of(transformer, Diffusion.of(scheduler))
        ours = objective.errors(one_batch(clean, noise, times, states, {}))[0]
    torch.testing.assert_close(
        ours, theirs.float(), rtol=1e-5, atol=0
    )  # the same numbers, multiplied and divided in another order


def test_the_noise_is_mixed_in_float32_whatever_the_latents_are():
    """D17: in bfloat16 the scheduler's own arithmetic is wrong by more than 5 % at several steps."""
    scheduler = build_pipeline("5B").scheduler
    diffusion, times = Diffusion.of(scheduler), torch.arange(20)
    clean, noise = torch.zeros(20, 1, 1, 1, 1), torch.ones(20, 1, 1, 1, 1)
    exact = (1 - scheduler.alphas_cumprod.double()).sqrt()[:20]
    ours = diffusion.noisy(clean, noise, times).flatten().double() / exact
    theirs = scheduler.add_noise(clean.bfloat16(), noise.bfloat16(), times).flatten().double() / exact
    assert (ours - 1).abs().max() < 1e-4
    assert (theirs - 1).abs().max() > 0.05


# What the transformer is called with.


class Called:
    """What a stock pipeline calls its transformer with in its one step, and what comes out."""

    def __init__(self, pipeline, **options):
        handle = pipeline.transformer.register_forward_hook(self._note, with_kwargs=True)
        states = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(5))
        pipeline.set_progress_bar_config(disable=True)
        options |= {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "prompt_embeds": states}
        pipeline(generator=torch.Generator().manual_seed(9), **options)
        handle.remove()

    def _note(self, module, args, options, output):
        self.options, self.output = options, output[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["2B", "5B", "1.5"])
def test_the_transformer_is_called_as_its_pipeline_calls_it_at_any_size(kind, size):
    """D14: training and inference agree on where every token is, also off the trained size."""
    pipeline = build_pipeline(kind, sample_height=8, sample_width=8)
    frames, height, width = size
    called = Called(pipeline, num_frames=frames, height=height, width=width)
    predict = predictor_of(pipeline.transformer.requires_grad_(False))
    with torch.no_grad():
        ours = predict(called.options["hidden_states"], called.options["encoder_hidden_states"], called.options["timestep"])
    torch.testing.assert_close(ours, called.output, rtol=0, atol=1e-6)


def test_portrait_of_1_5_beyond_its_grid_can_be_trained():
    """D14: the stock pipeline ends there."""
    model = build_transformer("1.5", sample_height=4, sample_width=8).requires_grad_(False)
    noisy = torch.randn(1, 2, 4, 8, 4)
    with torch.no_grad():
        assert predictor_of(model)(noisy, torch.randn(1, 8, 16), torch.tensor([500])).isfinite().all()


@pytest.fixture(params=["5B-I2V", "1.5-I2V"])
def image_pipeline(request):
    changes = I2V_15 if request.param == "1.5-I2V" else {}
    pipeline = build_pipeline(request.param.removesuffix("-I2V") if changes else request.param, **changes)
    pipeline.vae.register_to_config(invert_scale_latents=bool(changes))
    parts = {name: pipeline.components[name] for name in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}
    return CogVideoXImageToVideoPipeline(**parts)


def test_an_image_is_shown_as_the_image_to_video_pipeline_shows_it(image_pipeline, tmp_path):
    """D4: its latents are at the scale that inference uses, 1 / 0.7 for 1.5, padded as there; D7: and 1.5 is told ofs."""
    transformer = image_pipeline.transformer.requires_grad_(False)
    config = transformer.config
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    called = Called(image_pipeline, image=image / 2 + 0.5, num_frames=config.sample_frames, height=32, width=32)
    image_pipeline.save_pretrained(tmp_path)
    posterior = encode_image(load_components(tmp_path, roles=["vae"]), image[:, :, None])
    latent = posterior.sample(torch.Generator().manual_seed(9))[0]
    hidden = called.options["hidden_states"]
    shown = padded_with_zeros(latent, hidden.shape[1])[None]
    torch.testing.assert_close(shown, hidden[:, :, 4:], rtol=0, atol=1e-6)
    with torch.no_grad():
        ours = predictor_of(transformer)(
            hidden[:, :, :4], called.options["encoder_hidden_states"], called.options["timestep"], {"image": shown}
        )
    torch.testing.assert_close(ours, called.output, rtol=0, atol=1e-6)
    assert (called.options["ofs"] is not None) == bool(config.ofs_embed_dim)


def test_only_1_5_divides_the_latents_of_an_image_by_the_scale():
    """D4: three programs have three scales; ours is that of the published pipelines."""
    inverted = {facts.name for facts in MODELS if facts.invert_scale_latents and facts.in_channels == 32}
    assert inverted == {"CogVideoX1.5-5B-I2V"}


# Image conditioning.


def test_each_picture_has_noise_of_its_own_strength():
    """D18: log sigma is drawn from N(-3, 0.5^2) for every picture, not once for a batch."""
    noisy = noisy_image(torch.zeros(2000, 3, 1, 4, 4), torch.Generator().manual_seed(0))
    log_sigma = noisy.flatten(1).square().mean(1).sqrt().log()
    assert float(log_sigma.mean()) == pytest.approx(-3, abs=0.05)  # of 2000 draws; the estimate of each is off by 0.1
    assert float(log_sigma.std()) == pytest.approx(0.5, abs=0.05)


@pytest.fixture
def shown_twice(clips):
    """Looks at the first clip through a condition whose VAE does nothing but shrink."""

    def look(condition, *, number=0, is_measured=False):
        place = Look(place=(7, number), caption="", frame_group=1, is_measured=is_measured)
        return condition(clips[0], place)

    return look


def image_condition(dropout=0.0):
    return ImageCondition(
        first_frame=lambda source: torch.full((1, 3, 1, 32, 32), 0.5),
        encode=lambda video, generator: video[:, :, :, ::8, ::8].transpose(1, 2),
        dropout=dropout,
    )


def stored_condition(dropout=0.0):
    return StoredImageCondition(
        draws=lambda source: torch.arange(1.0, 9.0)[:, None, None, None] * torch.ones(8, 3, 4, 4), dropout=dropout
    )


CONDITIONS = {"encoded at every look": image_condition, "stored": stored_condition}


@pytest.mark.parametrize("make", CONDITIONS.values(), ids=CONDITIONS)
def test_only_the_first_latent_frame_shows_the_picture(shown_twice, clips, make):
    shown = shown_twice(make())
    assert shown.shape == clips[0]["latent_mean"].shape
    assert shown[0].abs().min() > 0
    assert not shown[1:].any()


@pytest.mark.parametrize("make", CONDITIONS.values(), ids=CONDITIONS)
def test_the_noise_of_a_picture_follows_from_the_look_alone(shown_twice, make):
    one, again = shown_twice(make()), shown_twice(make())
    others = [shown_twice(make(), number=number) for number in range(1, 5)]
    assert torch.equal(one, again)
    assert any(not torch.equal(one, other) for other in others)


@pytest.mark.parametrize("make", CONDITIONS.values(), ids=CONDITIONS)
def test_pictures_are_dropped_as_often_as_told_and_never_while_measuring(shown_twice, make):
    """D18: CogVideo's own trainer never drops them, SAT one in twenty."""
    dropped = [not shown_twice(make(0.5), number=number).any() for number in range(60)]
    assert 15 < sum(dropped) < 45
    assert all(shown_twice(make(0.5), number=number, is_measured=True).any() for number in range(60))


def test_with_the_padding_of_1_5_still_only_the_first_latent_frame_shows_the_picture(clips):
    shown = stored_condition()(clips[0], Look(place=(0,), caption="", frame_group=2))
    assert [bool(frame.any()) for frame in shown] == [True, False, False, False]


def test_an_image_to_video_model_goes_through_the_loop(branched, clips, held_out, diffusion, config, tmp_path):
    from reelora.train import Lesson, train

    model = branched(in_channels=6)
    lesson = Lesson(
        model=model, clips=clips, held_out=held_out, diffusion=diffusion, identity={}, conditions=[image_condition(0.05)]
    )
    assert train(lesson, config, tmp_path).is_complete


@pytest.mark.parametrize(
    ("channels", "conditions", "sentence"), [(6, [], "needs image"), (3, [image_condition()], "cannot take image")]
)
def test_a_model_and_conditions_that_do_not_fit_are_refused(branched, diffusion, channels, conditions, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Objective.of(branched(in_channels=channels), diffusion, conditions)


# Captions, and clips of the class.


def test_a_dropped_caption_is_the_unconditional_embedding(clips):
    """D18: CogVideo's own trainer never drops captions."""
    config = LoopConfig.of({"batch_size": 4, "caption_dropout": 0.5})
    batches = Batches(clips, config, num_timesteps=10, frame_group=1)
    rows = [states for forward in range(8) for states in batches.read(forward).states]
    empty = sum(torch.equal(states, clips.empty_prompt_states.float()) for states in rows)
    assert 6 < empty < 26


def test_a_batch_with_a_prior_has_the_loss_of_dreambooth(branched, clips, held_out, diffusion):
    """The mean over the clips plus the weight times the mean over their class. Source: diffusers' train_dreambooth_lora.py."""
    config = LoopConfig.of({"batch_size": 2})
    objective, prior = Objective.of(branched(), diffusion), Prior(clips=held_out, weight=0.5)
    batch = Batches(clips, config, num_timesteps=1000, frame_group=1, priors=[prior]).read(0)
    plain = Batches(clips, config, num_timesteps=1000, frame_group=1).read(0)
    assert batch.sources == (*plain.sources, *held_out.sources * 2)
    assert torch.equal(batch.noise[:2], plain.noise)
    errors = objective.errors(batch)[0]
    loss = (objective.weights(batch, config.timesteps) * errors).mean()
    torch.testing.assert_close(loss, errors[:2].mean() + 0.5 * errors[2:].mean())


def test_clips_of_the_class_are_told_what_is_theirs_also_where_names_are_the_same(clips, config):
    own, theirs = (StoredImageCondition(draws=lambda source, v=v: torch.full((1, 3, 4, 4), v), dropout=0) for v in (1.0, 2.0))
    priors = [Prior(clips=clips, conditions=[theirs])]
    batch = Batches(clips, config, num_timesteps=1000, frame_group=1, conditions=[own], priors=priors).read(0)
    assert batch.extras["image"][:, 0, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert not torch.equal(batch.noise[:2], batch.noise[2:])


def test_clips_of_the_class_of_another_size_are_refused(clips, config, tmp_path):
    from copy import copy

    other = copy(clips)
    other._clips = tuple(clip.model_copy(update={"report": replace(clip.report, size="1x8x8")}) for clip in clips._clips)
    with pytest.raises(ConfigError, match="all have to be of one size, not 1x8x8, 9x32x32"):
        Batches(clips, config, num_timesteps=1000, frame_group=1, priors=[Prior(clips=other)])


# What a variant can be given.


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("CogVideoX-2B", {"height": 481, "width": 719}, "height is 481.*480.*width is 719.*704 or 720"),
        ("CogVideoX-5B", {"num_frames": 81}, r"8n \+ 1 and at most 49"),
        ("CogVideoX1.5-5B", {"num_frames": 49 - 8}, r"16n \+ 1 .*33 or 49"),
        ("CogVideoX-5B-I2V", {"num_frames": 17}, "allows only 49"),
        ("SD 1.5", {"num_frames": 9}, "num_frames is 9"),
    ],
)
def test_sizes_that_a_variant_has_no_place_for_are_refused_with_the_nearest(name, wrong, sentence):
    """D10: CogVideo's own check looks at the wrong names, and takes 49x481x719 and any number of frames for 1.5."""
    facts = next(facts for facts in MODELS if facts.name == name)
    size = {"num_frames": facts.default_frames, "height": facts.default_height, "width": facts.default_width}
    facts.check_video(**size)
    with pytest.raises(ConfigError, match=sentence):
        facts.check_video(**size | wrong)


def test_the_base_computes_in_its_own_precision_and_the_loss_in_float32(branched, clips, diffusion, config):
    """D2: CogVideo's own trainer computes in float32 until the first validation, and in bfloat16 after it."""
    model = branched()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    seen = set()
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: seen.update(part.dtype for part in output))
    batch = Batches(clips, config, num_timesteps=1000, frame_group=1).read(0)
    errors, _ = Objective.of(model, diffusion).errors(batch)
    errors.mean().backward()
    assert (seen, errors.dtype) == ({torch.bfloat16}, torch.float32)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
