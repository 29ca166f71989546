"""Which clips a folder holds."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reelora.data import list_clips, with_repeats, with_trigger
from reelora.errors import DataError, FileFormatError


def put(folder: Path, **files: str | bytes) -> Path:
    """Make files; ``__`` stands for a dot and ``_in_`` for a folder."""
    for name, content in files.items():
        path = folder / name.replace("_in_", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pairs(clips) -> list[tuple[str, str]]:
    return [(clip.name, clip.caption) for clip in clips]


FORMS = {
    "beside": {"a__txt": "a cat", "sub_in_b__txt": "a dog"},
    "jsonl": {
        "metadata__jsonl": '{"file_name": "a.mp4", "text": "a cat"}\n\n{"file_name": "sub/b.mp4", "text": "a dog", "fps": 8}\n'
    },
    "csv": {"metadata__csv": "video,prompt,author\r\na.mp4,a cat,me\r\nsub/b.mp4,a dog,you\r\n"},
    "cogvideo": {"videos__txt": "a.mp4\nsub/b.mp4\n\n", "prompts__txt": "a cat\n\na dog\n"},
}


@pytest.mark.parametrize("files", FORMS.values(), ids=FORMS)
def test_all_forms_of_one_data_set_give_the_same_clips(tmp_path, files):
    put(tmp_path, a__mp4="", sub_in_b__mp4="", **files)
    clips = list_clips(tmp_path)
    assert pairs(clips) == [("a.mp4", "a cat"), ("sub/b.mp4", "a dog")]
    assert [clip.path for clip in clips] == [tmp_path / "a.mp4", tmp_path / "sub" / "b.mp4"]
    assert clips.unused == ()


def test_a_folder_is_sorted_by_name_and_a_list_keeps_its_order(tmp_path):
    put(tmp_path, b__mp4="", a__MP4="", b__txt="b", a__txt="a")
    assert pairs(list_clips(tmp_path)) == [("a.MP4", "a"), ("b.mp4", "b")]
    put(tmp_path, videos__txt="b.mp4\na.MP4", prompts__txt="b\na")
    assert pairs(list_clips(tmp_path)) == [("b.mp4", "b"), ("a.MP4", "a")]


def test_what_is_not_used_is_listed(tmp_path):
    put(tmp_path, a__mp4="", a__txt="a", readme__txt="hello", picture__png="", __DS_Store="", __cache_in_x__mp4="")
    assert list_clips(tmp_path).unused == ("readme.txt",)
    put(tmp_path, b__mp4="", metadata__jsonl='{"file_name": "a.mp4", "text": "a"}')
    assert list_clips(tmp_path).unused == ("b.mp4",)


def test_white_space_and_a_byte_order_mark_are_no_part_of_a_caption(tmp_path):
    put(tmp_path, a__mp4="", a__txt="\ufeff  a cat\r\n on a\tmat \n".encode())
    assert pairs(list_clips(tmp_path)) == [("a.mp4", "a cat on a mat")]


@given(captions=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_caption_survives_jsonl(tmp_path, captions):
    rows = [{"video": f"{index}.mp4", "caption": caption} for index, caption in enumerate(captions)]
    for row in rows:
        (tmp_path / row["video"]).touch()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(lines.encode())
    assert [clip.caption for clip in list_clips(tmp_path)] == [" ".join(caption.split()) for caption in captions]


SEVERAL = {
    "jsonl list": {"metadata__jsonl": '{"video": "a.mp4", "caption": ["a cat", "a pet", " a  cat"], "repeats": 3}'},
    "jsonl columns": {"metadata__jsonl": '{"video": "a.mp4", "text": "a cat", "text_2": "a pet", "repeats": 3}'},
    "csv": {"metadata__csv": "video,text,text_2,text_10,repeats\na.mp4,a cat,a pet,,3"},
}


@pytest.mark.parametrize("files", SEVERAL.values(), ids=SEVERAL)
def test_a_clip_may_have_several_captions_and_repeats_in_every_form_of_a_list(tmp_path, files):
    (clip,) = list_clips(put(tmp_path, a__mp4="", **files))
    assert (clip.captions, clip.repeats) == (("a cat", "a pet"), 3)


def test_lines_of_a_file_are_one_caption_or_several_as_asked(tmp_path):
    put(tmp_path, a__mp4="", a__txt="a cat\n\n a  pet \n")
    assert list_clips(tmp_path)[0].captions == ("a cat a pet",)
    assert list_clips(tmp_path, caption_lines="apart")[0].captions == ("a cat", "a pet")


def test_a_default_caption_is_given_to_the_clips_that_have_none_and_to_no_others(tmp_path):
    put(tmp_path, a__mp4="", b__mp4="", b__txt=" ", c__mp4="", c__txt="a dog")
    assert [clip.caption for clip in list_clips(tmp_path, default_caption="a cat")] == ["a cat", "a cat", "a dog"]


@pytest.mark.parametrize("repeats", ["0", "-1", "1.5", "often", "true", "[2]", "1000001", "9" * 5000])
def test_repeats_that_are_no_count_are_refused_by_row(tmp_path, repeats):
    text = repeats if repeats in ("0", "-1", "1.5", "true", "[2]", "1000001") else f'"{repeats}"'
    put(tmp_path, a__mp4="", metadata__jsonl=f'{{"video": "a.mp4", "text": "a", "repeats": {text}}}')
    with pytest.raises(DataError, match=r"1 of 1 clips have repeats that .* from 1 to 1,000,000: metadata\.jsonl:1"):
        list_clips(tmp_path)


def test_a_trigger_word_is_put_before_captions_that_do_not_hold_it_as_a_word(tmp_path):
    put(tmp_path, a__mp4="", b__mp4="", c__mp4="", a__txt="a cat", b__txt="a Zzq, sleeping", c__txt="a zzqs")
    assert [clip.caption for clip in with_trigger(list_clips(tmp_path), "zzq")] == [
        "zzq a cat",
        "a Zzq, sleeping",
        "zzq a zzqs",
    ]


def test_repeats_go_by_pattern_and_the_last_that_matches_counts(tmp_path):
    put(tmp_path, x_in_a__mp4="", x_in_b__mp4="", c__mp4="", x_in_a__txt="a", x_in_b__txt="b", c__txt="c")
    clips = with_repeats(list_clips(tmp_path), {"x/*": 3, "*b.mp4": 5})
    assert {clip.name: clip.repeats for clip in clips} == {"x/a.mp4": 3, "x/b.mp4": 5, "c.mp4": 1}
    with pytest.raises(DataError, match=r"1 of 1 patterns in repeats match no clip: y/\*\. Clips are named as c\.mp4"):
        with_repeats(clips, {"y/*": 2})


def test_images_are_clips_only_where_they_are_asked_for(tmp_path):
    put(tmp_path, a__mp4="", b__png="", a__txt="a", b__txt="b")
    assert [[clip.name for clip in list_clips(tmp_path, media=media)] for media in ("videos", "images", "both")] == [
        ["a.mp4"],
        ["b.png"],
        ["a.mp4", "b.png"],
    ]


def test_columns_can_be_named(tmp_path):
    put(tmp_path, a__mp4="", metadata__csv="clip,long text,text\na.mp4,a long cat,a cat")
    clips = list_clips(tmp_path, video_column="clip", caption_column="long text")
    assert pairs(clips) == [("a.mp4", "a long cat")]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("clip,text", {}, "no column file_name or video .it has clip, text.; name it with video_column"),
        ("video,words", {}, "no column text or caption or prompt"),
        ("text,caption,video", {}, "columns text and caption; say with caption_column"),
        ("video,text", {"caption_column": "txet"}, "did you mean 'text'"),
    ],
)
def test_an_unclear_column_is_an_error_that_says_what_to_do(tmp_path, header, options, message):
    put(tmp_path, metadata__csv=f"{header}\n{header}")
    with pytest.raises(DataError, match=message):
        list_clips(tmp_path, **options)


def test_everything_wrong_is_said_at_once(tmp_path):
    rows = [
        {"file_name": "a.mp4", "text": "a"},
        {"file_name": "./a.mp4", "text": "again"},
        {"file_name": "../b.mp4", "text": "b"},
        {"file_name": "/etc/passwd", "text": "c"},
        {"file_name": "gone.mp4", "text": "d"},
        {"file_name": "e.mp4", "text": "  "},
        {"text": "f"},
    ]
    put(tmp_path, a__mp4="", e__mp4="", metadata__jsonl="\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as error:
        list_clips(tmp_path)
    for part in [
        "a.mp4",
        "'../b.mp4'",
        "'/etc/passwd'",
        "'gone.mp4'",
        "'e.mp4'",
        "metadata.jsonl:7",
        "2 of 7",
        "named more than once",
    ]:
        assert part in str(error.value)


def test_captions_that_are_missing_empty_or_no_text_are_all_named(tmp_path):
    put(tmp_path, a__mp4="", b__mp4="", b__txt=" \n", c__mp4="", c__txt=b"\xff\xfe\x00", d__mp4="", d__txt="fine", e__mp4="")
    with pytest.raises(DataError) as error:
        list_clips(tmp_path)
    message = str(error.value)
    assert "2 of 5 clips have no caption: a.mp4, e.mp4" in message
    assert "1 of 5 clips have an empty caption: b.mp4" in message
    assert "1 of 5 clips have a caption that is no UTF-8 text: c.mp4" in message


def test_names_and_captions_that_no_manifest_could_repeat_are_refused_before_anything_is_encoded(tmp_path):
    put(tmp_path, a__mp4="", metadata__jsonl='{"file_name": "a.mp4", "text": "a \\ud83d cat"}')
    with pytest.raises(DataError, match=r"1 of 1 clips have a caption with half a character .*: metadata\.jsonl:1 'a\.mp4'"):
        list_clips(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    put(tmp_path, a__txt="a cat")
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{odd}.mp4").touch()
    (tmp_path / f"{odd}.txt").write_text("coffee")
    with pytest.raises(DataError, match=r"1 of 2 clips have a name that is no UTF-8 text .*: 'caf\\udce9\.mp4'"):
        list_clips(tmp_path)


def test_a_row_that_names_the_folder_itself_is_a_missing_file(tmp_path):
    put(tmp_path, metadata__jsonl='{"file_name": ".", "text": "a"}')
    with pytest.raises(DataError, match=r"1 of 1 clips are missing: metadata\.jsonl:1"):
        list_clips(tmp_path)


def test_folders_behind_links_are_looked_into_and_links_in_a_circle_once(tmp_path):
    put(tmp_path / "elsewhere", a__mp4="", a__txt="a cat")
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(clips)
    assert pairs(list_clips(clips)) == [("cats/a.mp4", "a cat")]


def test_two_videos_cannot_share_one_caption(tmp_path):
    put(tmp_path, a__mp4="", a__mov="", a__txt="which?")
    with pytest.raises(DataError, match=r"share one caption.*a\.mov, a\.mp4"):
        list_clips(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no clip. Put videos"),
        ({"a__txt": "a caption only"}, "holds no clip"),
        ({"metadata__jsonl": "\n"}, "holds no clip"),
        ({"metadata__jsonl": "", "metadata__csv": ""}, "metadata.jsonl and metadata.csv"),
        ({"videos__txt": "a.mp4", "prompt__txt": "a"}, "no prompts.txt .* rename prompt.txt"),
        ({"videos__txt": "a.mp4\nb.mp4", "prompts__txt": "a"}, "2 clips and prompts.txt has 1 captions"),
        ({"metadata__csv": "video,text\na.mp4,a cat, on a mat"}, "more cells than the header, first line 2; put captions"),
    ],
)
def test_a_folder_without_a_clear_list_of_clips_is_an_error(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        list_clips(put(tmp_path, **files))


def test_lines_that_are_no_json_objects_are_all_counted(tmp_path):
    put(tmp_path, a__mp4="", metadata__jsonl='{"file_name": "a.mp4", "text": "a"}\n[1]\n{"file_name": \n')
    with pytest.raises(FileFormatError, match="2 of 3 lines are no JSON object, first line 2, line 3"):
        list_clips(tmp_path)


def test_a_line_of_many_levels_is_no_json_object_either(tmp_path):
    put(tmp_path, metadata__jsonl="[" * 200_000)
    with pytest.raises(FileFormatError, match="1 of 1 lines are no JSON object"):
        list_clips(tmp_path)


def test_a_missing_folder_and_a_file_in_its_place_say_so(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        list_clips(tmp_path / "nowhere")
    put(tmp_path, a__mp4="")
    with pytest.raises(DataError, match="is a file; give the folder"):
        list_clips(tmp_path / "a.mp4")
