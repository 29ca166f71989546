"""Pages and sheets: a file that is there is left as it is, which is said before the work."""

import pytest
from stills import draw_stills


def test_a_page_on_noise_levels_replaces_no_file(reelora, tmp_path, files):
    page = tmp_path / "page.html"
    page.write_text("mine")
    before = files()
    result = reelora("train", "--show-timesteps", page, "--model", tmp_path / "nowhere")
    assert result.code == 2
    assert f"{page} is there already and is left as it is; name another file or delete it." in result.err
    assert files() == before


@pytest.mark.parametrize("verb", [["--dry-run"], []])
def test_a_sheet_replaces_no_file(reelora, clips, tmp_path, files, verb):
    sheet = tmp_path / "sheet.png"
    sheet.write_text("mine")
    before = files()
    result = reelora("precompute", "--data", clips, "--sheet", sheet, *verb)
    assert result.code == 2
    assert result.err == f"reelora: {sheet} is there already and is left as it is; name another file or delete it.\n"
    assert files() == before


def test_nor_do_its_further_pages(reelora, tmp_path, files):
    pictures = draw_stills(tmp_path / "stills")
    (picture, *_) = sorted(pictures.glob("*.png"))
    for index in range(41):
        (pictures / f"more{index}.png").write_bytes(picture.read_bytes())
        (pictures / f"more{index}.txt").write_text("one more")
    (tmp_path / "sheet-2.png").write_text("mine")
    before = files()
    settings = ["--data", pictures, "--set", "data.media=images", "--set", "data.num_frames=1", "--dry-run"]
    result = reelora("precompute", *settings, "--sheet", tmp_path / "sheet.png")
    assert result.code == 2
    assert "sheet-2.png is there already" in result.err
    assert files() == before


def test_a_sheet_in_no_folder_is_refused_before_the_work(reelora, clips, tmp_path):
    result = reelora("precompute", "--data", clips, "--sheet", tmp_path / "nowhere" / "sheet.png")
    assert result.code == 2
    assert result.err == f"reelora: {tmp_path / 'nowhere'}: There is no such folder; make it first\n"


def test_a_sheet_never_becomes_a_clip(reelora, tmp_path, monkeypatch, files):
    pictures = draw_stills(tmp_path / "stills")
    before = files()
    monkeypatch.chdir(pictures)
    result = reelora("precompute", "--data", tmp_path / "stills", "--set", "data.media=images", "--sheet", "sheet.png")
    assert result.code == 2
    assert "lies among the clips" in result.err
    assert files() == before


def test_a_sheet_may_lie_among_films(reelora, clips):
    result = reelora("precompute", "--data", clips, "--dry-run", "--sheet", clips / "sheet.png")
    assert result.code == 0, result.err
    again = reelora("precompute", "--data", clips, "--dry-run")
    assert "sheet.png" not in again.out
