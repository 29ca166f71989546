"""Held-out clips over a run: measured with and without the adapter, remembered, and the best weights kept."""

import json

import pytest
import torch

from reelora.lora import collect
from reelora.train import OptimizerConfig, read_metrics, read_verdicts, showing_best
from reelora.train.evaluate import held_out_errors
from reelora.train.objective import Objective
from reelora.train.shown import nothing_like, showing
from reelora.train.team import Team


def rows(folder):
    return [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]


@pytest.fixture
def long(config):
    return config.model_copy(update={"steps": 9, "evaluate_every": 1, "checkpoint_every": 9, "keep_checkpoints": 1})


def test_a_fresh_adapter_is_the_base_to_the_last_bit(run, tmp_path):
    run()
    base, fresh = rows(tmp_path / "run")[:2]
    assert (base["is_base"], fresh["is_base"], fresh["step"]) == (True, False, 0)
    assert base["errors"] == fresh["errors"]


def test_showing_nothing_is_the_model_without_branches(branched, clips, diffusion, run):
    _, trained, _ = run()
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    settings = {"seed": 1, "batch_size": 4, "team": Team()}
    with showing(parameters, nothing_like(parameters)):
        shown = held_out_errors(trained, Objective.of(trained, diffusion), clips, **settings)
    fresh = branched()
    assert torch.equal(shown, held_out_errors(fresh, Objective.of(fresh, diffusion), clips, **settings))


def test_a_resumed_run_remembers_what_the_clips_said(run, config, tmp_path):
    run("whole")
    seen = []
    run("halves", on_step=lambda report: seen.append(report.step), should_stop=lambda: seen[-1:] == [4])
    run("halves")
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")
    assert [str(verdict) for verdict in read_verdicts(tmp_path / "halves")] == [
        str(verdict) for verdict in read_verdicts(tmp_path / "whole")
    ]


def test_the_base_is_measured_once_in_the_life_of_a_run(run, long, tmp_path):
    seen = []
    run(settings=long, on_step=lambda report: seen.append(report.step), should_stop=lambda: seen[-1:] == [3])
    run(settings=long)
    assert [row["is_base"] for row in rows(tmp_path / "run")] == [True] + [False] * 10


def test_other_held_out_clips_are_measured_anew(run, config, held_out, clips, tmp_path):
    run()
    run(settings=config.model_copy(update={"steps": 8}), held_out=clips)
    assert {len(row["errors"]) for row in rows(tmp_path / "run")} == {len(clips)}


def test_the_best_weights_are_kept_and_can_be_shown(run, branched, long, tmp_path):
    """At this rate the first step helps and the next two overshoot."""
    settings = long.model_copy(
        update={"steps": 3, "ema_decay": 0.5, "optimizer": OptimizerConfig(learning_rate=0.3, warmup_steps=2)}
    )
    model, weights = branched(), {}

    def on_step(report):
        weights[report.step] = {name: pair.b for name, pair in collect(model).pairs.items()}

    result, _, _ = run(settings=settings, model=model, on_step=on_step)
    measured = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out_loss" in row]
    step = min(measured, key=lambda row: row["held_out_loss"])["step"]
    assert result.best_step == step == 1
    assert sorted(path.name[-1] for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["1", "3"]
    with showing_best(model, tmp_path / "run", step):
        shown = {name: pair.b for name, pair in collect(model).pairs.items()}
    assert all(torch.equal(shown[name], weights[step][name]) for name in shown)
    assert all(torch.equal(pair.b, weights[3][name]) for name, pair in collect(model).pairs.items())
