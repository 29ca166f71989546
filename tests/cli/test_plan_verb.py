"""``reelora plan``: the choice with why, the table, JSON, and mistakes."""

import json


def test_the_choice_is_printed_with_why(reelora):
    done = reelora("plan", "zai-org/CogVideoX-5b", "--device", "rtx-4090")
    assert done.code == 0
    assert "one part at a time" in done.out
    assert "not everything resident: decode takes" in done.out
    assert "pretended" in done.out
    assert "catalog" in done.out


def test_the_table_shows_every_way(reelora):
    done = reelora("plan", "--explain")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["plan", "*"]
    assert "Times are estimates." in done.out


def test_programs_read_json(reelora):
    done = reelora("plan", "zai-org/CogVideoX-5b", "--device", "24GiB", "--frames", "9", "--json")
    told = json.loads(done.out)
    assert told["chosen"]["placement"] in ("resident", "model", "group")
    assert told["peak_bytes"] == max(
        next(row for row in told["rows"] if row["peak_bytes"] == told["peak_bytes"])["bytes"].values()
    )
    assert told["fits"]


def test_a_training_run_is_planned_with_the_published_figure(reelora, tmp_path):
    run = tmp_path / "run.toml"
    run.write_text('model = "zai-org/CogVideoX-5b"\n')
    done = reelora("plan", "--train", str(run), "--device", "24GiB")
    assert done.code == 0
    assert "Published: 24 GB for rank 128 at 49x480x720" in done.out
    assert ": met." in done.out


def test_options_of_generation_are_refused_in_the_plan_of_a_run(reelora):
    done = reelora("plan", "pocket", "--frames", "9", "--unguided", "--precision", "bf16", "--set", "loop.steps=5")
    assert (done.code, done.out) == (2, "")
    assert "--frames, --unguided, --precision would have no say in the plan of a training run" in done.err


def test_counts_are_at_least_one(reelora):
    for option in ("--frames", "--height", "--width", "--steps", "--batch-size"):
        assert reelora("plan", "pocket", option, "0").code == 2


def test_a_job_that_fits_nowhere_ends_with_2_and_says_what_to_do(reelora):
    done = reelora("plan", "zai-org/CogVideoX-5b", "--device", "2GiB")
    assert done.code == 2
    assert "Nothing fits" in done.out


def test_mistakes_are_one_clear_line(reelora):
    for arguments, said in (
        (["--device", "rtx-4900"], "did you mean 'rtx-4090'"),
        (["--memory", "lots"], "24GiB"),
        (["--frames", "50"], "try"),
        (["--precision", "bf15"], "did you mean 'bf16'"),
    ):
        done = reelora("plan", "pocket", *arguments)
        assert done.code == 2
        assert said in done.err
        assert len(done.err.splitlines()) == 1


def test_a_home_that_nobody_has_is_named(reelora):
    done = reelora("plan", "~nobody-of-this-name/model")
    assert (done.code, done.err) == (
        2,
        "reelora: ~nobody-of-this-name/model: Nobody of this name has a home folder here\n",
    )
