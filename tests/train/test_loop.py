"""A run: what it learns, what it leaves, how it resumes and how it stops."""

import json
import shutil

import pytest
import torch

from reelora.errors import ConfigError, DataError, FileFormatError, TrainingDivergedError
from reelora.lora import collect
from reelora.train import Lesson, OptimizerConfig, Team, TensorBoard, only_run_in, read_metrics, train
from reelora.train.batches import Batches
from reelora.train.checkpoint import find_checkpoint, write_checkpoint
from reelora.train.evaluate import held_out_errors
from reelora.train.objective import Objective

IDENTITY = {"base": "tiny"}


def weights(model):
    return {name: (pair.a, pair.b) for name, pair in collect(model).pairs.items()}


def assert_same_weights(one, other):
    for name, pair in weights(one).items():
        assert all(torch.equal(a, b) for a, b in zip(pair, weights(other)[name], strict=True)), name


def stop_after(step):
    seen = []

    def on_step(report):
        seen.append(report.step)

    return {"on_step": on_step, "should_stop": lambda: bool(seen) and seen[-1] >= step}


def test_the_loss_falls_on_clips_that_are_learned_by_heart(run, config):
    long = config.model_copy(update={"steps": 60, "checkpoint_every": 60, "evaluate_every": 0})
    _, _, losses = run(settings=long)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_one_that_was_never_stopped(run, config, stop, accumulation):
    """CogVideo's own trainer begins the epoch's clips again, and goes on only where the newest checkpoint is named by hand."""
    config = config.model_copy(update={"gradient_accumulation": accumulation})
    whole, model, losses = run("whole", config)
    assert whole.is_complete
    first, _, _ = run("halves", config, **stop_after(stop))
    assert (first.step, first.is_complete) == (stop, False)
    second, resumed, resumed_losses = run("halves", config)
    assert (second.step, second.resumed_from) == (6, stop)
    assert resumed_losses == losses
    assert_same_weights(resumed, model)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(run, config, tmp_path):
    _, model, losses = run("whole")

    def kill(report):
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("killed", on_step=kill)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')
    result, resumed, resumed_losses = run("killed")
    assert result.resumed_from == 4
    assert resumed_losses == losses
    assert_same_weights(resumed, model)


def test_a_run_that_is_complete_does_nothing_more(run):
    _, model, losses = run()
    result, again, same = run()
    assert (result.resumed_from, result.step) == (6, 6)
    assert same == losses
    assert_same_weights(again, model)


def test_a_longer_run_with_a_constant_rate_continues_a_shorter_one(run, config):
    _, whole, _ = run("whole", config.model_copy(update={"steps": 8}))
    run("halves")
    _, longer, _ = run("halves", config.model_copy(update={"steps": 8}))
    assert_same_weights(longer, whole)


def test_accumulated_gradients_are_those_of_the_larger_batch(run, config):
    _, _, large = run("large", config.model_copy(update={"batch_size": 4}))
    _, _, small = run("small", config.model_copy(update={"gradient_accumulation": 2}))
    assert small == pytest.approx(large, rel=1e-5)  # float32 sums in another order


def test_gradient_checkpointing_changes_no_number(run, config):
    _, _, plain = run("plain")
    _, _, frugal = run("frugal", config.model_copy(update={"gradient_checkpointing": True}))
    assert frugal == plain


def test_a_run_within_less_memory_gives_the_same_numbers(run, config):
    plans = []
    _, _, plain = run("plain", on_plan=plans.append)
    tight = 0.97 * plans[0].total_bytes / 2**30
    _, _, frugal = run("frugal", config.model_copy(update={"memory": tight}), on_plan=plans.append)
    assert set(plans[0].chosen.values()) == {"everything"}
    assert set(plans[1].chosen.values()) != {"everything"}
    assert frugal == plain


def test_afterwards_the_model_runs_its_blocks_as_they_are(run):
    _, model, _ = run()
    assert not model.is_gradient_checkpointing


def test_checkpointing_may_be_turned_on_for_a_run_that_has_begun(run, config):
    _, whole, _ = run("whole")
    run("halves", **stop_after(3))
    _, resumed, _ = run("halves", config.model_copy(update={"gradient_checkpointing": True}))
    assert_same_weights(resumed, whole)


def test_measuring_changes_no_step(run, config):
    """CogVideo's own trainer casts what it trains to bfloat16 and back at every validation."""
    _, _, often = run("often", config.model_copy(update={"evaluate_every": 1}))
    _, _, never = run("never", config.model_copy(update={"evaluate_every": 0}))
    assert often == never


def test_with_accumulation_the_clips_are_measured_between_optimizer_steps_alone(run, branched, config, tmp_path):
    """CogVideo's own trainer validates after every forward pass of a step that is due, with half of its gradients there."""
    model, seen = branched(), []

    def on_step(report):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        seen.append((report.step, {p.dtype for p in parameters}, any(p.grad is not None for p in parameters)))

    config = config.model_copy(update={"gradient_accumulation": 3, "evaluate_every": 2})
    run(settings=config, model=model, on_step=on_step)
    assert seen == [(step, {torch.float32}, False) for step in range(1, 7)]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 2, 4, 6]


def test_held_out_loss_is_measured_from_step_zero_to_the_end(run, tmp_path):
    run()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 3, 6]


def test_the_base_is_never_changed_nor_cast(run, branched):
    """CogVideo's own trainer holds it in float32 until the first validation, and in bfloat16 after it."""
    model = branched().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    run(model=model)
    after = {name: value for name, value in model.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_checkpoints_hold_only_what_is_trained_and_the_newest_stay(run, tmp_path):
    _, model, _ = run()
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-000004", "step-000006"]
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints" / "step-000006").iterdir())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert size < 3 * 4 * trained + 20_000


def test_another_run_in_the_same_folder_is_refused_with_every_difference(run, config):
    run()
    other = config.model_copy(update={"batch_size": 1, "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2)})
    with pytest.raises(ConfigError) as error:
        run(settings=other, identity={"base": "other"})
    for name in ("base", "loop.batch_size", "loop.optimizer.learning_rate"):
        assert name in str(error.value)


def test_a_damaged_checkpoint_is_named_and_the_model_is_left_alone(run, branched, tmp_path):
    run()
    state = tmp_path / "run" / "checkpoints" / "step-000006" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-3] ^= 0x55
    state.write_bytes(content)
    model = branched()
    with pytest.raises(DataError, match="step-000006"):
        run(model=model)
    assert_same_weights(model, branched())
    state.write_bytes(content[:100])
    with pytest.raises(DataError, match="step-000006"):
        run(model=model)


@pytest.mark.parametrize("text", ["{", "[]", '"a"', "{}"])
def test_a_manifest_that_is_none_is_named(run, tmp_path, text):
    run()
    (tmp_path / "run" / "checkpoints" / "step-000006" / "manifest.json").write_text(text)
    with pytest.raises(FileFormatError, match="step-000006"):
        run()


def test_a_manifest_of_which_one_digit_changed_is_not_believed_and_one_of_an_earlier_version_is(run, tmp_path):
    run()
    path = tmp_path / "run" / "checkpoints" / "step-000006" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"step": 5}))
    with pytest.raises(FileFormatError, match=r"step-000006.*not the one that was written"):
        run()
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    assert run()[0].resumed_from == 6


def test_folders_of_other_names_are_no_checkpoints(run, tmp_path):
    """CogVideo's own trainer reads a step out of any name. Here a copy that was laid aside would sort behind the newest."""
    _, whole, losses = run("whole")
    run("halves", **stop_after(2))
    checkpoints = tmp_path / "halves" / "checkpoints"
    shutil.copytree(checkpoints / "step-000002", checkpoints / "step-before")
    (checkpoints / "step-notes").mkdir()
    run("halves", **stop_after(4))
    result, model, resumed_losses = run("halves")
    assert result.resumed_from == 4
    assert resumed_losses == losses
    assert_same_weights(model, whole)
    assert {"step-before", "step-notes"} <= {path.name for path in checkpoints.iterdir()}


def test_the_newest_checkpoint_is_the_one_of_the_highest_step_also_beyond_a_million(tmp_path):
    for step in (999_999, 1_000_000, 2):
        write_checkpoint(tmp_path, ({"a": torch.ones(1)}, {}), step=step, identity={}, seconds=0, keep=9, best=None)
    newest = find_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1_000_000


def test_a_full_disk_leaves_the_newest_checkpoint_and_names_it(run, tmp_path, monkeypatch):
    """CogVideo's own trainer deletes the old checkpoint before the new one is there."""
    import reelora.train.checkpoint as room

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    run(**stop_after(3))
    monkeypatch.setattr(room, "write_tensors", full)
    with pytest.raises(OSError, match=r"No space.* last whole checkpoint is step-000003"):
        run()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000003"]


def test_a_run_that_explodes_stops_with_advice_and_keeps_its_checkpoints(run, branched, tmp_path):
    run(**stop_after(2))
    broken = branched()
    broken.transformer_blocks[0].attn1.to_q.bias.data.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError, match=r"Step 3: .*step-000002.*learning_rate \(now 0.01\)"):
        run(model=broken)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_no_clips_are_refused(branched, clips, held_out, diffusion, config, tmp_path):
    empty = clips._those(lambda clip: False)
    lesson = Lesson(model=branched(), clips=empty, held_out=held_out, diffusion=diffusion, identity=IDENTITY)
    with pytest.raises(ConfigError, match="no clips"):
        train(lesson, config, tmp_path)


def test_unreadable_lines_of_the_metrics_do_not_stop_a_resume(run, tmp_path):
    _, _, losses = run("whole")
    run("halves", **stop_after(3))
    path = tmp_path / "halves" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\0\0\0\n{}\n[1]\n")
    assert run("halves")[2] == losses


def test_tensorboard_reads_what_a_resumed_run_wrote(branched, clips, held_out, diffusion, config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def start(**options):
        lesson = Lesson(model=branched(), clips=clips, held_out=held_out, diffusion=diffusion, identity=IDENTITY)
        train(lesson, config, tmp_path, boards=[TensorBoard], **options)

    start(**stop_after(3))
    start()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    losses = {event.step: event.value for event in board.Scalars("loss")}
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows if "loss" in row})


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_held_out_loss_does_not_depend_on_how_much_is_computed_at_once(branched, held_out, diffusion, batch_size):
    model = branched()
    objective = Objective.of(model, diffusion)
    one, other = (held_out_errors(model, objective, held_out, seed=0, batch_size=size, team=Team()) for size in (batch_size, 4))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_latents_of_cogvideox_1_5_are_padded_before_they_are_noised(clips, config):
    plain, padded = (Batches(clips, config, num_timesteps=10, frame_group=group).read(0) for group in (1, 2))
    assert (plain.clean.shape[1], padded.clean.shape[1]) == (3, 4)
    assert torch.equal(padded.clean[:, 1:], plain.clean)
    assert torch.equal(padded.clean[:, 0], plain.clean[:, 0])
    assert not torch.equal(padded.noise[:, 0], padded.noise[:, 1])


def test_rows_are_json_with_step_and_loss(run, tmp_path):
    """And with the memory taken, also on a CPU, where CogVideo's own trainer fails when it asks for it."""
    run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(7))
    assert all({"step", "loss", "learning_rate", "grad_norm", "seconds"} <= row.keys() for row in rows[1:])
    assert all(row["peak_memory_bytes"] > 100e6 for row in rows[1:])  # that of this process, torch included


def test_a_file_called_stop_ends_a_run_well_and_the_same_call_goes_on(run, tmp_path):
    _, whole, losses = run("whole")

    def touch(report):
        if report.step == 3:
            (tmp_path / "halves" / "STOP").touch()

    first, _, _ = run("halves", on_step=touch)
    assert (first.step, first.is_complete) == (3, False)
    assert "STOP" in first.stopped_by
    second, model, resumed_losses = run("halves")
    assert second.is_complete
    assert resumed_losses == losses
    assert_same_weights(model, whole)


def test_a_disk_that_is_nearly_full_ends_a_run_with_a_checkpoint(run, tmp_path, monkeypatch):
    import reelora.train.disk as room

    seen = []
    real = room.shutil.disk_usage
    full = lambda path: real(path)._replace(free=0 if seen[-1:] == [3] else 2**40)  # noqa: E731
    monkeypatch.setattr(room.shutil, "disk_usage", full)
    result, _, _ = run(on_step=lambda report: seen.append(report.step))
    assert (result.step, result.stopped_by) == (3, "the disk is nearly full")
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()


def test_a_disk_without_room_for_the_checkpoints_is_said_before_the_first_step(run, monkeypatch):
    import reelora.train.disk as room

    real = room.shutil.disk_usage
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: real(path)._replace(free=0))
    with pytest.raises(ConfigError, match="do not fit"):
        run()


@pytest.mark.parametrize("damage", ["manifest.json", "state.safetensors"])
def test_on_request_a_damaged_checkpoint_is_passed_over(run, config, tmp_path, damage):
    _, whole, losses = run()
    file = tmp_path / "run" / "checkpoints" / "step-000006" / damage
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises((DataError, FileFormatError), match="skip_damaged_checkpoints"):
        run()
    result, again, same = run(settings=config.model_copy(update={"skip_damaged_checkpoints": True}))
    assert (result.resumed_from, result.step) == (4, 6)
    assert same == losses
    assert_same_weights(again, whole)


def test_a_loss_beyond_hope_stops_a_run_that_is_still_finite(run, branched):
    model = branched()
    model.proj_out.weight.data.mul_(100)
    with pytest.raises(
        TrainingDivergedError, match=r"Step 1: .*predicting nothing.* saw .*\.mp4 at timestep .*no checkpoint yet"
    ):
        run(model=model)


def test_a_folder_is_used_by_one_run_at_a_time(tmp_path):
    with (
        only_run_in(tmp_path / "run"),
        pytest.raises(ConfigError, match="in use by another run"),
        only_run_in(tmp_path / "run"),
    ):
        pass
    with only_run_in(tmp_path / "run"):
        pass
