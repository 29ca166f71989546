"""Processes that split the base between them compute what one with all of it does, bit for bit, and hold half."""

import json

import pytest
import torch
from processes import finish, losses_of, start, start_team
from shards import examine, train_and_tell
from torch import nn

from reelora.errors import ConfigError
from reelora.lora import held_base_bytes, shard_base, sharded_base_bytes
from reelora.tensorio import open_tensors
from reelora.train import Team, read_metrics, read_verdicts
from reelora.train.budget import plan_memory

SETTINGS = ["steps=4", "gradient_accumulation=4", "evaluate_every=2", "batch_size=3"]
"""Eight timesteps of one held-out clip in batches of three are three passes: one process has one less to do."""


def state(folder, step=4):
    return dict(open_tensors(folder / "checkpoints" / f"step-{step:06d}" / "state.safetensors"))


def assert_same_run(one, other):
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    rows, others = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    for name in ("loss", "grad_norm", "held_out_loss"):
        assert [row[name] for row in rows if name in row] == [row[name] for row in others if name in row] != []


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The folder of a run of two processes with all of the base each."""
    folder = tmp_path_factory.mktemp("whole")
    assert set(finish(start(cache.folder, folder, *SETTINGS, size=2))) == {0}
    return folder


@pytest.mark.parametrize(("kind", "dtype"), [("CogVideoX", "float32"), ("CogVideoX", "bfloat16"), ("UNet", "float32")])
def test_losses_gradients_and_predictions_are_those_of_the_whole_base_and_half_of_it_is_held(tmp_path, kind, dtype):
    assert set(finish(start_team(examine, str(tmp_path), kind, dtype, size=2))) == {0}
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        ways = [way for way, same in found.items() if isinstance(same, list)]
        assert {way: all(found[way]) for way in ways} == dict.fromkeys(ways, True)
        assert len(ways) == {"CogVideoX": 4, "UNet": 2}[kind]
        assert found["smallest gradient"] > 0
        assert found["alive"] == 0
        assert found["has_same_names"]
        assert "cannot be undone" in found["refusal"]
        assert 0.5 <= found["held_bytes"] / found["base_bytes"] < 0.6
        assert found["held_bytes"] < found["expected_bytes"] < found["base_bytes"], "two blocks of it are gathered at a time"


@pytest.mark.parametrize("checkpointing", ["auto", "true"])
def test_a_run_that_splits_the_base_is_that_of_processes_with_all_of_it(cache, whole, tmp_path, checkpointing):
    """Its evaluations too, of which one process has one less to make: alone it would wait for the other for ever."""
    settings = ["shard_base=true", f"gradient_checkpointing={checkpointing}", *SETTINGS]
    assert set(finish(start_team(train_and_tell, str(cache.folder), str(tmp_path), *settings, size=2))) == {0}
    assert_same_run(tmp_path, whole)
    for rank in (0, 1):
        assert 0.5 < json.loads((tmp_path / f"held-{rank}.json").read_text()) < 0.7
    assert read_verdicts(tmp_path) == read_verdicts(whole)


def test_a_run_that_splits_the_base_is_resumed_in_the_middle_bit_for_bit(cache, whole, tmp_path):
    for steps in (2, 4):
        ends = finish(start(cache.folder, tmp_path, "shard_base=true", *SETTINGS, f"steps={steps}", size=2))
        assert set(ends) == {0}
    assert_same_run(tmp_path, whole)


def test_one_process_with_the_whole_base_may_go_on(cache, whole, tmp_path):
    finish(start(cache.folder, tmp_path, "shard_base=true", *SETTINGS, "steps=2", size=2))
    assert set(finish(start(cache.folder, tmp_path, *SETTINGS))) == {0}
    assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3, 4]
    assert losses_of(tmp_path)[:2] == losses_of(whole)[:2]
    ours, theirs = ([loss for _, loss in losses_of(folder)] for folder in (tmp_path, whole))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_one_process_has_nobody_to_split_the_base_with(run, config):
    with pytest.raises(ConfigError, match=r"loop\.shard_base splits the base over several processes, and this is one"):
        run(settings=config.model_copy(update={"shard_base": True}))


def test_fsdp_that_accelerate_was_told_of_is_not_forgotten(run, config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"accelerate was told to use FSDP, and loop\.shard_base is false"):
        run()


def test_the_memory_plan_counts_the_part_that_a_process_holds(branched, config):
    model, settings = branched(num_layers=8), config.model_copy(update={"shard_base": True, "gradient_checkpointing": True})

    def planned(processes):
        return plan_memory(model, lambda: torch.zeros(()), settings, device=torch.device("cpu"), processes=processes).base_bytes

    assert planned(2) == sharded_base_bytes(model, 2)
    assert planned(8) < planned(2) < held_base_bytes(model)


def test_a_model_that_does_not_say_what_must_stay_whole_is_refused():
    with pytest.raises(ConfigError, match="A Linear cannot be split"):
        shard_base(nn.Linear(2, 2), torch.device("cpu"))


def test_a_base_that_is_stored_in_another_way_is_refused_as_it_is(branched):
    model = branched()
    model.transformer_blocks[0].ff.register_forward_pre_hook(lambda *_: None)
    weight = model.transformer_blocks[1].attn1.to_q.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match=r"1 of its blocks have hooks.*\.0\); 1 of its weights are packed.*1\.attn1\.to_q"):
        shard_base(model, torch.device("cpu"))
    assert type(model).__name__ == "CogVideoXTransformer3DModel"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_rounds_are_as_many_for_all_and_count_every_item_once(size, count):
    teams = [Team(rank=rank, size=size) for rank in range(size)]
    rounds = [list(team.rounds(range(count))) for team in teams]
    assert len({len(own) for own in rounds}) == 1
    assert sorted(item for own in rounds for item, counts in own if counts) == list(range(count))
