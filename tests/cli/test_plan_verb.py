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
