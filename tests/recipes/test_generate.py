"""From what a command line asks for to files: orders, sweeps, earlier videos, partial queues."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from reelora.adapters import Adapter, LoraSpec, Pair, read_adapter, write_adapter
from reelora.errors import ConfigError, FileFormatError
from reelora.generate import Clip, Session, read_video_metadata
from reelora.recipes import Place, Saving, Silent, Wishes, find_model, generate, read_adapters
from reelora.recipes.adapter_texts import AdapterFiles

QUICK: dict[str, Any] = {"steps": 1, "num_frames": 9, "height": 32, "width": 32}
PLACE = Place(precision="fp32", device="cpu")


def make(wishes, saving, place=PLACE, listener=None):
    return generate(wishes, place, saving, listener=listener or Silent())


def told_by(*paths):
    return [read_video_metadata(path) for path in paths]


class StopsAfter(Silent):
    """Ctrl-C once so many steps are done."""

    def __init__(self, steps):
        self.steps, self.done, self.lines = steps, 0, []

    def say(self, line):
        self.lines.append(line)

    def progress(self, task, done, total, note=""):
        self.done = done

    def stopping(self):
        from contextlib import nullcontext

        return nullcontext(lambda: self.done >= self.steps)


@pytest.fixture
def style(tmp_path) -> Path:
    """An adapter of the pocket model."""
    session = Session(find_model("pocket"))
    draw = torch.Generator().manual_seed(1)
    names = [f"transformer.transformer_blocks.{i}.attn1.to_q" for i in range(session.parts.transformer.config.num_layers)]
    pairs = {name: Pair(torch.randn(4, 192, generator=draw), torch.randn(192, 4, generator=draw) / 9, 1.0) for name in names}
    adapter = Adapter(pairs=pairs, spec=LoraSpec(rank=4, alpha=4), layout="memory", scale_source="the test")
    write_adapter(adapter, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


# ---- prompts and files of them


def test_every_prompt_gets_its_videos_with_seeds_that_count_up(tmp_path):
    wishes = Wishes(prompts=("a red circle", "a blue square"), seed=4, videos_per_prompt=2, settings=QUICK)
    outcome = make(wishes, Saving(output=tmp_path / "a.mp4"))
    assert [path.name for path in outcome.files] == ["a-0.mp4", "a-1.mp4", "a-2.mp4", "a-3.mp4"]
    told = told_by(*outcome.files)
    assert [(one["prompt"], one["seed"]) for one in told] == [
        ("a red circle", 4),
        ("a red circle", 5),
        ("a blue square", 6),
        ("a blue square", 7),
    ]
    assert told[0]["model"]["source"] == "pocket"


def test_a_file_of_lines_is_one_prompt_each(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue square  \n")
    outcome = make(Wishes(prompt_file=tmp_path / "prompts.txt", settings=QUICK), Saving(output=tmp_path / "a.gif"))
    assert [one["prompt"] for one in told_by(*outcome.files)] == ["a red circle", "a blue square"]


def test_only_a_new_line_ends_a_line_of_json(tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a red\u2028circle"}\n', encoding="utf-8")
    outcome = make(Wishes(prompt_file=tmp_path / "jobs.jsonl", settings=QUICK), Saving(output=tmp_path / "a.gif"))
    assert [one["prompt"] for one in told_by(*outcome.files)] == ["a red\u2028circle"]


def test_a_name_may_hold_an_equals_sign(tmp_path, style):
    odd = style.rename(tmp_path / "step=100, of 3.safetensors")
    for text, strength in ((str(odd), 1.0), (f"{odd}=0.5", 0.5)):
        [(file, (_, found))] = read_adapters([text]).items()
        assert (file, found) == (str(odd), strength)


def test_a_file_is_read_once_for_all_its_strengths_and_names(tmp_path, style, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(style)
    files = AdapterFiles()
    names = ("style.safetensors", "./style.safetensors=0.5", str(style), "link.safetensors=2")
    found = [adapter for name in names for adapter, _ in files.read([name]).values()]
    assert all(adapter is found[0] for adapter in found)
    assert next(iter(files.read([f"{style},alpha=8"]).values()))[0] is not found[0]
    looked_at = []
    monkeypatch.setattr("reelora.recipes.adapter_texts.read_adapter", lambda path: looked_at.append(path) or read_adapter(path))
    rows = [
        {"prompt": "a", "adapters": [f"{name}={strength}"]} for name in (style.name, f"./{style.name}") for strength in (0.5, 1)
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(Wishes(prompt_file=tmp_path / "jobs.jsonl", settings=QUICK), Saving(output=tmp_path / "a.gif"))
    assert looked_at == [style.name]


def test_a_file_by_two_names_is_given_twice(tmp_path, style, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"\./style\.safetensors is given twice"):
        make(
            Wishes(prompts=("a",), adapters=("style.safetensors", "./style.safetensors=0.5")), Saving(output=tmp_path / "a.gif")
        )


def test_a_line_of_json_has_its_own_seed_adapters_size_and_file(tmp_path, style):
    rows = [
        {"prompt": "a red circle", "seed": 9, "height": 48},
        {"prompt": "a blue square", "adapters": {str(style): 0.5}, "output": "square.mp4", "steps": 2},
        {"prompt": "a blue square", "adapters": [f"{style}=0.25"]},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = make(Wishes(prompt_file=tmp_path / "jobs.jsonl", seed=1, settings=QUICK), Saving(output=tmp_path / "a.mp4"))
    first, square, third = told_by(tmp_path / "a-0.mp4", tmp_path / "square.mp4", tmp_path / "a-2.mp4")
    assert len(outcome.files) == 3
    assert (first["seed"], first["height"], first["adapters"]) == (9, 48, [])
    assert (square["seed"], square["steps"], square["adapters"][0]["strength"]) == (2, 2, 0.5)
    assert (third["seed"], third["adapters"][0]["strength"]) == (3, 0.25)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", r"jobs\.jsonl:2: is no JSON"),
        ('["a"]', r"jobs\.jsonl:2: has to be an object with a prompt"),
        ('{"seed": 3}', r"jobs\.jsonl:2: has to be an object with a prompt"),
        ('{"prompt": "a", "stpes": 3}', r"jobs\.jsonl:2: stpes is unknown: did you mean 'steps'"),
        ('{"prompt": "a", "batch_size": 3}', r"jobs\.jsonl:2: batch_size is unknown"),
        ('{"prompt": "a", "seed": "x"}', r"jobs\.jsonl:2: seed is 'x'"),
        ('{"prompt": "a", "image": 3}', r"jobs\.jsonl:2: image is 3"),
        ('{"prompt": "a", "adapters": 3}', r"jobs\.jsonl:2: adapters are 3; write"),
        ('{"prompt": "a", "steps": 0}', r"steps"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, line, complaint):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a red circle"}\n' + line)
    with pytest.raises(ConfigError, match=complaint):
        make(Wishes(prompt_file=tmp_path / "jobs.jsonl"), Saving(output=tmp_path / "a.mp4"))
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        (Wishes(), "a prompt, --prompts FILE, or --like VIDEO"),
        (Wishes(prompts=("a", "b"), grid=("seed=1,2",)), "of one prompt"),
        (Wishes(prompts=("a",), grid=("sede=1,2",)), "did you mean 'seed'"),
        (Wishes(prompts=("a",), grid=("seed",)), "write NAME=VALUE"),
        (Wishes(prompts=("a",), grid=("seed=",)), "has no values"),
        (Wishes(prompts=("a",), grid=("seed=1,1",)), "come twice"),
        (Wishes(prompts=("a",), grid=("seed=1", "seed=2")), "there is an axis seed already"),
        (Wishes(prompts=("a",), grid=("steps=1,many",)), "steps"),
        (Wishes(prompts=("a",), grid=("seed=1,abc",)), "'abc' is no seed; write whole numbers"),
        (Wishes(prompts=("a",), grid=("x=1,abc",), adapters=("x.safetensors",)), "'abc' is no strength; write numbers"),
        (Wishes(prompts=("a",), grid=("x=1,nan",), adapters=("x.safetensors",)), "nan is no strength; write numbers"),
        (Wishes(prompts=("a",), grid=("x=0,1",), adapters=("a/x.safetensors", "b/x.safetensors")), "called so are 2 files"),
        (Wishes(prompts=("a",), grid=("steps=1,2",), adapters=("steps.safetensors",)), "is a setting too"),
        (Wishes(prompts=("a \ud83d cat",)), "has half a character"),
        (Wishes(prompts=("a",), adapters=("x.safetensors", "x.safetensors=0.5")), "x.safetensors"),
    ],
)
def test_wishes_that_cannot_be_are_refused_before_anything_is_written(tmp_path, wishes, complaint):
    with pytest.raises((ConfigError, FileNotFoundError), match=complaint):
        make(wishes, Saving(output=tmp_path / "a.mp4"))
    assert list(tmp_path.iterdir()) == []


# ---- files that exist


def test_files_that_exist_are_refused_replaced_or_numbered(tmp_path):
    wishes, path = Wishes(prompts=("a red circle",), settings=QUICK), tmp_path / "a.mp4"
    make(wishes, Saving(output=path))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.mp4 exists already"):
        make(wishes, Saving(output=path))
    other = replace(wishes, seed=3)
    assert make(other, Saving(output=path, number=True)).files == [tmp_path / "a-1.mp4"]
    assert path.read_bytes() == before
    make(other, Saving(output=path, overwrite=True))
    assert path.read_bytes() == (tmp_path / "a-1.mp4").read_bytes() != before


def test_a_queue_that_was_stopped_goes_on_where_it_was(tmp_path):
    """Four videos of two steps, stopped in the third: two are kept as they are, two are made."""
    wishes = Wishes(prompts=("a red circle", "a blue square"), videos_per_prompt=2, settings={**QUICK, "steps": 2})
    listener = StopsAfter(5)
    outcome = make(wishes, Saving(output=tmp_path / "a.mp4"), listener=listener)
    assert outcome.is_stopped
    assert "2 of 4 videos are finished" in listener.lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.mp4", "a-1.mp4"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = make(wishes, Saving(output=tmp_path / "a.mp4", resume=True))
    assert (again.kept, again.files) == (
        [tmp_path / "a-0.mp4", tmp_path / "a-1.mp4"],
        [tmp_path / "a-2.mp4", tmp_path / "a-3.mp4"],
    )
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not again.is_stopped
    whole = make(wishes, Saving(output=tmp_path / "b.mp4"))
    assert [path.read_bytes() for path in whole.files] == [(tmp_path / f"a-{i}.mp4").read_bytes() for i in range(4)]


def test_a_file_that_was_made_otherwise_is_not_taken_for_finished(tmp_path):
    wishes = Wishes(prompts=("a red circle",), settings=QUICK)
    make(wishes, Saving(output=tmp_path / "a.mp4"))
    with pytest.raises(ConfigError, match=r"a\.mp4 exists and was made otherwise \(seed\)"):
        make(replace(wishes, seed=1), Saving(output=tmp_path / "a.mp4", resume=True))


def test_a_file_that_was_made_otherwise_is_made_anew_where_it_may_be_replaced(tmp_path):
    wishes = Wishes(prompts=("a red circle", "a blue square"), settings=QUICK)
    first, second = make(wishes, Saving(output=tmp_path / "a.mp4")).files
    make(replace(wishes, prompts=("a green star",), seed=1), Saving(output=second, overwrite=True))
    again = make(wishes, Saving(output=tmp_path / "a.mp4", resume=True, overwrite=True))
    assert (again.kept, again.files) == ([first], [second])


def test_free_names_and_files_that_are_there_cannot_both_be_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="--number takes names that are free, --resume looks for files"):
        Saving(output=tmp_path / "a.mp4", number=True, resume=True)


def test_a_folder_is_no_name_for_several_videos_either(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder; name a file in it, such as .*video\.mp4"):
        make(Wishes(prompts=("a", "b"), settings=QUICK), Saving(output=tmp_path))


def test_a_long_queue_holds_no_video_that_is_written(tmp_path, monkeypatch):
    held: list[weakref.ref] = []
    alive: list[int] = []
    save = Clip.save

    def counting(clip, *args, **options):
        held.append(weakref.ref(clip.frames))
        gc.collect()
        alive.append(sum(frames() is not None for frames in held))
        return save(clip, *args, **options)

    monkeypatch.setattr(Clip, "save", counting)
    make(Wishes(prompts=("a red circle",), videos_per_prompt=4, settings=QUICK), Saving(output=tmp_path / "a.mp4"))
    assert len(held) == 4
    assert max(alive) <= 2  # the one that is written, and the one before it, which the loop has not let go yet


def test_two_prompts_cannot_share_a_file(tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a", "output": "x.mp4"}\n{"prompt": "b", "output": "x.mp4"}')
    with pytest.raises(ConfigError, match=r"x\.mp4: is the output of two prompts"):
        make(Wishes(prompt_file=tmp_path / "jobs.jsonl"), Saving(output=tmp_path / "a.mp4"))


# ---- again


def test_a_video_is_made_again_bit_for_bit_from_what_it_says(tmp_path, style):
    asked = {**QUICK, "steps": 3, "guidance": 2.5, "negative_prompt": "grey", "scheduler": "ddim", "guidance_schedule": "index"}
    wishes = Wishes(prompts=("a red circle",), seed=8, adapters=(f"{style}=0.5",), settings=asked)
    make(wishes, Saving(output=tmp_path / "a.mp4"))
    make(Wishes(like=tmp_path / "a.mp4"), Saving(output=tmp_path / "b.mp4"), place=Place(device="cpu"))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    make(Wishes(like=tmp_path / "a.mp4", seed=9), Saving(output=tmp_path / "c.mp4"), place=Place(device="cpu"))
    first, other = told_by(tmp_path / "a.mp4", tmp_path / "c.mp4")
    assert {name for name in first if first[name] != other[name]} == {"seed"}


def test_a_video_from_a_video_is_made_again_as_long_as_that_is_the_same(tmp_path):
    source = tmp_path / "source.mp4"
    make(Wishes(prompts=("a red circle",), settings=QUICK), Saving(output=source))
    wishes = Wishes(prompts=("a blue square",), video=str(source), settings={**QUICK, "steps": 4, "video_strength": 0.5})
    make(wishes, Saving(output=tmp_path / "a.mp4"))
    make(Wishes(like=tmp_path / "a.mp4"), Saving(output=tmp_path / "b.mp4"), place=Place(device="cpu"))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    source.write_bytes(source.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"its video .*source\.mp4 was changed since"):
        make(Wishes(like=tmp_path / "a.mp4"), Saving(output=tmp_path / "c.mp4"))
    source.unlink()
    with pytest.raises(ConfigError, match=r"its video .*source\.mp4 is not here: give it with --video"):
        make(Wishes(like=tmp_path / "a.mp4"), Saving(output=tmp_path / "c.mp4"))


def test_a_video_is_not_made_again_with_another_adapter_of_that_name(tmp_path, style):
    make(Wishes(prompts=("a red circle",), adapters=(str(style),), settings=QUICK), Saving(output=tmp_path / "a.mp4"))
    other = Adapter(
        pairs={"transformer.transformer_blocks.0.attn1.to_q": Pair(torch.ones(1, 192), torch.ones(192, 1), 1.0)},
        spec=LoraSpec(rank=1, alpha=1),
        layout="memory",
        scale_source="the test",
    )
    style.unlink()
    write_adapter(other, style)
    with pytest.raises(ConfigError, match=r"style\.safetensors: has other weights than the video was made with"):
        make(Wishes(like=tmp_path / "a.mp4"), Saving(output=tmp_path / "b.mp4"), place=Place(device="cpu"))
    assert not (tmp_path / "b.mp4").exists()


def test_a_file_that_is_no_video_of_ours_cannot_be_made_again(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match="not the JSON that reelora writes"):
        make(Wishes(like=tmp_path / "a.png"), Saving(output=tmp_path / "b.mp4"))


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"model": "pocket"}, "model: Input should be"),
        ({"model": {"source": "pocket"}}, r"model\.fingerprint: Field required"),
        ({"model": {"source": 7, "fingerprint": "1"}}, r"model\.source: "),
        ({"dtype": "float64"}, "dtype: "),
        ({"adapters": 3}, "adapters: "),
        ({"adapters": [{"file": "a.safetensors"}]}, r"adapters\.0\.strength: Field required"),
        ({"image": "a.png"}, "image: "),
        ({"seed": "x"}, "seed: "),
    ],
)
def test_what_a_file_says_of_itself_is_checked_before_it_is_believed(tmp_path, told, complaint):
    model = {"source": "pocket", "fingerprint": "1"}
    metadata = {"prompt": "a", "seed": 1, "model": model, "dtype": "float32", "adapters": [], **told}
    Clip(frames=torch.zeros(1, 8, 8, 3, dtype=torch.uint8), fps=8, metadata=metadata).save(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match=rf"a\.png: what it says of how it was made .* {complaint}"):
        make(Wishes(like=tmp_path / "a.png"), Saving(output=tmp_path / "b.mp4"))


# ---- sweeps


def test_a_sweep_makes_every_combination_and_its_plot(tmp_path, style):
    wishes = Wishes(
        prompts=("a red circle",), adapters=(str(style),), seed=7, grid=("style=0,0.5", "guidance=1,2,3"), settings=QUICK
    )
    outcome = make(wishes, Saving(output=tmp_path / "a.mp4"))
    told = told_by(*(tmp_path / f"a-{i}.mp4" for i in range(6)))
    cells = [(one["adapters"][0]["strength"], one["guidance"], one["seed"]) for one in told]
    assert cells == [(0, 1, 7), (0, 2, 7), (0, 3, 7), (0.5, 1, 7), (0.5, 2, 7), (0.5, 3, 7)]
    assert [path.name for path in outcome.files[6:]] == ["a-grid.png", "a-grid.mp4"]
    plot = read_video_metadata(tmp_path / "a-grid.png")
    assert plot["grid"] == {
        "rows": [{"name": "style", "values": [0, 0.5]}],
        "columns": [{"name": "guidance", "values": [1, 2, 3]}],
    }
    assert [cell["guidance"] for cell in plot["cells"]] == [1, 2, 3, 1, 2, 3]
    with Image.open(tmp_path / "a-grid.png") as sheet:
        assert sheet.width > sheet.height


def test_prompts_can_be_an_axis(tmp_path):
    make(Wishes(grid=("prompt=a red circle|a blue square",), settings=QUICK), Saving(output=tmp_path / "a.mp4"))
    told = told_by(tmp_path / "a-0.mp4", tmp_path / "a-1.mp4")
    assert [one["prompt"] for one in told] == ["a red circle", "a blue square"]


def test_a_strength_of_zero_is_the_base(tmp_path, style):
    wishes = Wishes(prompts=("a red circle",), adapters=(f"{style}=0",), settings=QUICK)
    make(wishes, Saving(output=tmp_path / "off.png"))
    make(replace(wishes, adapters=()), Saving(output=tmp_path / "base.png"))
    for index in range(9):
        with Image.open(tmp_path / f"off_{index:04d}.png") as off, Image.open(tmp_path / f"base_{index:04d}.png") as base:
            assert off.tobytes() == base.tobytes()


def test_a_sweep_takes_free_names_for_its_plots_too(tmp_path):
    wishes = Wishes(prompts=("a red circle",), grid=("seed=1,2",), settings=QUICK)
    make(wishes, Saving(output=tmp_path / "a.gif"))
    again = make(wishes, Saving(output=tmp_path / "a.gif", number=True))
    assert [path.name for path in again.files] == ["a-0-1.gif", "a-1-1.gif", "a-grid-1.png", "a-grid-1.gif"]


def test_a_sheet_is_a_picture_and_no_video_of_the_queue(tmp_path):
    with pytest.raises(ConfigError, match=r"all\.mp4: a sheet is a picture"):
        Saving(output=tmp_path / "a.mp4", sheet=tmp_path / "all.mp4")
    with pytest.raises(ConfigError, match=r"a\.png: is the output of a prompt and of a sheet"):
        make(Wishes(prompts=("a",), settings=QUICK), Saving(output=tmp_path / "a.png", sheet=tmp_path / "a.png"))


def test_a_sheet_shows_all_videos(tmp_path):
    wishes = Wishes(prompts=("a red circle", "a blue square"), settings=QUICK)
    outcome = make(wishes, Saving(output=tmp_path / "a.mp4", sheet=tmp_path / "all.png"))
    assert outcome.files[-1] == tmp_path / "all.png"
    assert len(read_video_metadata(tmp_path / "all.png")["cells"]) == 2
