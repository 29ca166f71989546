"""A whole run by two processes: what one of them has done is not done again by the other."""

import os
from importlib import import_module
from pathlib import Path

import pytest
from pocket_runs import small_config, write_films
from processes import finish, start_team

from reelora import components, recipes
from reelora.generate import Session
from reelora.recipes import Silent, TrainConfig
from reelora.train import read_metrics


def run_noting(settings, notes):
    """One process of the run; notes the roles that it loads and the previews that it makes."""
    rank = os.environ["RANK"]
    generate = Session.generate

    def load(path, **options):
        parts = components.load_components(path, **options)
        for role in parts.roles:
            Path(notes, f"{rank} loads {role}").touch()
        return parts

    def make(session, prompt, **options):
        with Path(notes, "previews").open("a") as file:
            file.write(f"{prompt}\n")
        return generate(session, prompt, **options)

    with pytest.MonkeyPatch.context() as patches:
        for room in ("precompute", "previews", "trained"):
            patches.setattr(import_module(f"reelora.recipes.{room}"), "load_components", load)
        patches.setattr(Session, "generate", make)
        recipes.train(TrainConfig.read_toml(Path(settings)), listener=Silent())


def test_encoders_are_loaded_by_one_process_and_every_preview_is_made_once(tmp_path):
    """In CogVideo's own trainer every process loads the text encoder and the VAE, and makes all previews."""
    prompts = ["a red circle", "a star", "a square"]
    preview = {"preview__prompts": prompts, "preview__every": 1, "preview__steps": 1}
    loop = {"loop__steps": 1, "loop__gradient_accumulation": 2, "loop__evaluate_every": 0, "data__held_out": 0}
    config = small_config(tmp_path / "run", write_films(tmp_path / "clips", 17, 17), tensorboard=False, **preview, **loop)
    settings, notes = tmp_path / "run.toml", tmp_path / "notes"
    settings.write_text(config.toml())
    notes.mkdir()
    assert finish(start_team(run_noting, str(settings), str(notes), size=2)) == [0, 0]
    loads = {path.name for path in notes.iterdir()}
    assert {"0 loads text_encoder", "0 loads vae", "0 loads transformer", "1 loads transformer"} <= loads
    assert "1 loads text_encoder" not in loads
    assert sorted((notes / "previews").read_text().splitlines()) == sorted(prompts * 2)
    assert len(list((config.output / "previews").iterdir())) == 2 * len(prompts)
    assert [row["step"] for row in read_metrics(config.output / "metrics.jsonl")] == [1]
