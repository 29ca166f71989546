"""The plan of a job: published figures are met, the fastest that fits is taken, and nothing but the job decides it."""

from dataclasses import replace

import pytest
import torch

from reelora.errors import ConfigError
from reelora.plan import CARDS, GenerationJob, Plan, advice_after_oom, plan_generation, predict, pretended, with_memory
from reelora.plan.device import GIB


@pytest.fixture(scope="module")
def five(published):
    return published("zai-org/CogVideoX-5b")


@pytest.fixture(scope="module")
def job(five):
    return GenerationJob.for_model(five.facts)


def on(memory):
    """A card with that much memory, in a host that has enough."""
    return replace(pretended("cuda", memory=memory), host_bytes=64 * GIB)


@pytest.mark.parametrize(
    ("hub_id", "card", "seconds"),
    [
        ("zai-org/CogVideoX-2b", "a100", 90),
        ("zai-org/CogVideoX-5b", "a100", 180),
        ("zai-org/CogVideoX1.5-5B", "a100", 1000),
        ("zai-org/CogVideoX-2b", "h100", 45),
        ("zai-org/CogVideoX-5b", "h100", 90),
        ("zai-org/CogVideoX1.5-5B", "h100", 550),
    ],
)
def test_times_are_near_the_published_ones(published, hub_id, card, seconds):
    """50 steps on one GPU. Source: CogVideo, README.md, "Inference Speed"."""
    model = published(hub_id)
    row = predict(model, pretended(card), GenerationJob.for_model(model.facts), Plan())
    assert row.seconds == pytest.approx(seconds, rel=0.35)


@pytest.mark.parametrize(
    ("hub_id", "gigabytes"), [("zai-org/CogVideoX-2b", 4), ("zai-org/CogVideoX-5b", 5), ("zai-org/CogVideoX1.5-5B", 10)]
)
def test_the_smallest_plan_takes_what_is_published_for_it_or_less(published, hub_id, gigabytes):
    """Sequential offload with tiles. Source: CogVideo, README.md, "Single GPU Memory Usage"."""
    model = published(hub_id)
    row = predict(model, on("24GiB"), GenerationJob.for_model(model.facts), Plan(placement="sequential", tiles=True))
    assert 0.7 * gigabytes < row.peak_bytes / 1e9 <= 1.05 * gigabytes


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("80GiB", "resident"),
        ("24GiB", "model"),
        ("16GiB", "group,streams"),
        ("8GiB", "group,streams,tiles"),
    ],
)
def test_less_memory_means_another_plan(five, job, memory, words):
    choice = plan_generation(five, on(memory), job)
    assert choice.fits
    assert choice.chosen.spelled.removesuffix(",compile") == words


def test_nothing_fits_is_an_answer_with_what_the_least_takes(five, job):
    choice = plan_generation(five, on("2GiB"), job)
    assert not choice.fits
    assert "Nothing fits. The smallest is" in choice.answer
    assert choice.chosen_row.peak_bytes == min(row.peak_bytes for row in choice.rows)


def test_what_is_free_now_or_measured_decides_nothing(five, job):
    device = on("24GiB")
    full = replace(device, free_bytes=GIB, measured=replace(device.rates, transfer=1e6), is_pretended=False)
    choice = plan_generation(five, full, job)
    assert choice.chosen == plan_generation(five, device, job).chosen
    assert any("1.0 GiB of" in note and "are free now" in note for note in choice.notes)


def test_fp8_is_for_jobs_that_nothing_else_fits(five, job):
    choices = [plan_generation(five, on(f"{size}GiB"), job) for size in (4, 6, 8, 12, 16, 24, 48, 80)]
    for choice in choices:
        others = [row for row in choice.rows if row.fits and not row.plan.fp8]
        assert not (choice.chosen.fp8 and others)


def test_fp8_halves_the_large_layers_of_the_denoiser(five, job):
    device = on("80GiB")
    plain, small = (predict(five, device, job, Plan(fp8=fp8)).bytes_by_phase["denoise"] for fp8 in (False, True))
    assert 0.35 < (plain - small) / five.denoiser.bytes_in(None) < 0.5


def test_compiling_pays_for_long_jobs_on_an_accelerator_alone(five, job, cpu):
    device = on("80GiB")
    assert not plan_generation(five, device, replace(job, steps=2)).chosen.compile
    assert plan_generation(five, device, replace(job, steps=1000)).chosen.compile
    assert not plan_generation(five, cpu, replace(job, steps=1000)).chosen.compile


def test_a_host_that_is_too_small_for_what_waits_there_is_said(five, job):
    device = replace(on("24GiB"), host_bytes=16 * GIB)
    rows = [row for row in plan_generation(five, device, job).rows if row.plan.placement != "resident"]
    assert all("spill to the disk" in row.why_not or "too much" in row.why_not for row in rows)
    assert any("spill to the disk" in row.why_not for row in rows)


def test_on_a_cpu_parts_come_in_turn_or_not_at_all(five, job, cpu):
    rows = plan_generation(five, cpu, job).rows
    assert {row.plan.placement for row in rows} == {"resident", "model"}
    assert all(row.host_bytes == 0 for row in rows)


def test_letting_the_text_encoder_go_saves_its_weights(pocket, cpu):
    job = GenerationJob.for_model(pocket.facts)
    together, in_turn = (
        predict(pocket, cpu, job, Plan(placement=placement)).bytes_by_phase for placement in ("resident", "model")
    )
    text = pocket.text_encoders[0].bytes_in(None)
    assert {phase: together[phase] - in_turn[phase] for phase in together} == {"encode": 0, "denoise": text, "decode": text}


def test_adapters_take_memory_while_denoising(five, job):
    device = on("80GiB")
    plain = predict(five, device, job, Plan()).bytes_by_phase["denoise"]
    branches = predict(five, device, replace(job, adapter_rank=128), Plan()).bytes_by_phase["denoise"]
    fused = predict(five, device, replace(job, adapter_rank=128, is_fused=True), Plan()).bytes_by_phase["denoise"]
    assert branches - plain == 42 * 4 * 128 * 2 * 3072 * 2  # 264 MB in bfloat16, as the published trainers' files have
    assert fused - plain == 42 * 4 * 3072 * 3072 * 2


def test_guidance_batch_and_frames_make_a_step_larger(five, job):
    device = on("80GiB")
    sizes = [
        predict(five, device, replace(job, **change), Plan()).bytes_by_phase["denoise"]
        for change in ({"is_guided": False}, {}, {"batch_size": 2})
    ]
    assert sizes == sorted(set(sizes))


def test_the_table_has_every_row_and_marks_the_chosen_one(five, job):
    choice = plan_generation(five, on("24GiB"), job)
    text = choice.explain()
    assert all(row.plan.spelled in text for row in choice.rows)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("*")] == [choice.chosen.spelled]
    assert "Times are estimates." in text


def test_out_of_memory_is_answered_with_a_plan_that_fits_and_how_to_ask_for_it(five, job):
    advice = advice_after_oom(five, on("24GiB"), job, Plan())
    assert "34.4 GiB by prediction" in advice
    assert "--plan model" in advice
    assert "plan='model" in advice
    assert "No plan fits" in advice_after_oom(five, on("3GiB"), job, Plan(placement="sequential", tiles=True))


def test_after_out_of_memory_a_plan_that_takes_no_less_is_not_named(five, job):
    """Something else holds the memory: by prediction the plan fits."""
    advice = advice_after_oom(five, on("24GiB"), job, Plan(placement="model"))
    assert "--plan model," not in advice
    assert "--plan" in advice


def test_the_job_is_checked_with_the_model(five):
    with pytest.raises(ConfigError, match="try 49"):
        GenerationJob.for_model(five.facts, num_frames=50)


@pytest.mark.parametrize(
    ("name", "value", "least"), [("steps", -3, 1), ("steps", 0, 1), ("batch_size", 0, 1), ("adapter_rank", -1, 0)]
)
def test_a_job_of_less_than_nothing_is_none(five, name, value, least):
    with pytest.raises(ConfigError, match=f"{name} is {value}, it must be at least {least}"):
        GenerationJob.for_model(five.facts, **{name: value})


def test_without_bfloat16_units_it_is_said(five, job):
    notes = plan_generation(five, replace(pretended("t4"), host_bytes=64 * GIB), replace(job, dtype=torch.bfloat16)).notes
    assert any("--precision fp16" in note for note in notes)


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 * GIB), ("24 gb", 24 * 10**9), ("16g", 16 * GIB)])
def test_a_device_can_be_pretended_by_its_memory(text, size):
    assert pretended(text).total_bytes == size


def test_a_device_can_be_pretended_by_its_name():
    assert {name: pretended(name).name for name in CARDS} == {name: name for name in CARDS}
    assert pretended("NVIDIA GeForce RTX 4090").name == "rtx-4090"
    assert pretended("rtx-4090", memory="10GiB").total_bytes == 10 * GIB
    with pytest.raises(ConfigError, match="did you mean 'rtx-4090'"):
        pretended("rtx-4900")
    with pytest.raises(ConfigError, match="24GiB"):
        pretended("cuda", memory="lots")


def test_a_cpu_can_be_pretended_to_be_smaller(cpu, pocket):
    small = with_memory(cpu, "1GiB")
    assert not plan_generation(pocket, small, GenerationJob.for_model(pocket.facts)).fits
