"""Which pieces of a video become clips, and which bucket each goes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelora.data import ChoiceKind, ClipChoice, ClipSettings, Probe, pieces_of
from reelora.errors import ConfigError


def video(num_frames: int, height: int = 32, width: int = 48, fps: float = 8) -> Probe:
    return Probe(
        num_frames=num_frames,
        seconds=num_frames / fps,
        fps=fps,
        is_steady=True,
        height=height,
        width=width,
        pixel_aspect=1,
        turns=0,
    )


def buckets(*sizes: str, fps: float = 8, min_share: float = 0.5) -> list[ClipSettings]:
    parts = [tuple(map(int, size.split("x"))) for size in sizes]
    return [ClipSettings(num_frames=t, height=h, width=w, fps=fps, min_share=min_share) for t, h, w in parts]


def found(probe: Probe, *sizes: str, kind: ChoiceKind = "head", **options) -> list[tuple[str, int]]:
    pieces = pieces_of(probe, buckets(*sizes), ClipChoice(kind=kind, **options)).pieces
    return [(str(piece.settings), piece.first) for piece in pieces]


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(1, 1), (2, 1), (5, 9), (9, 9), (12, 9), (16, 17), (17, 17), (25, 17), (400, 49), (40, 49), (28, 17), (30, 49)],
)
def test_a_video_goes_to_the_nearest_number_of_frames_that_it_has_enough_of(num_frames, expected):
    assert found(video(num_frames), *(f"{t}x32x48" for t in (1, 9, 17, 49))) == [(f"{expected}x32x48", 0)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 720, "32x48"),
        (720, 480, "48x32"),
        (1080, 1920, "32x48"),
        (500, 500, "40x40"),
        (530, 500, "40x40"),
        (90, 9, "48x32"),
    ],
)
def test_a_video_goes_to_the_nearest_shape(height, width, expected):
    assert found(video(9, height, width), "9x32x48", "9x48x32", "9x40x40") == [(f"9x{expected}", 0)]


def test_of_one_shape_the_largest_that_enlarges_nothing_is_taken():
    sizes = ("9x16x24", "9x32x48", "9x64x96")
    assert [found(video(9, h, h * 3 // 2), *sizes)[0][0] for h in (10, 16, 31, 32, 63, 64, 900)] == [
        "9x16x24",
        "9x16x24",
        "9x16x24",
        "9x32x48",
        "9x32x48",
        "9x64x96",
        "9x64x96",
    ]


@given(num_frames=st.integers(1, 300), fps=st.sampled_from([8, 12, 24, 30]))
def test_chunks_cover_a_video_once_and_what_is_left_is_said(num_frames, fps):
    probe = video(num_frames, fps=fps)
    num_own = probe.own_frames(8)
    result = pieces_of(probe, buckets("49x32x48", "17x32x48", "9x32x48"), ClipChoice(kind="chunks"))
    covered = [frame for p in result.pieces for frame in range(p.first, min(num_own, p.first + p.settings.num_frames))]
    assert covered == list(range(len(covered)))
    left = num_own - len(covered)
    assert left < 5
    assert (f"its last {left} frames" in result.leftover) == bool(left and result.pieces)


@given(num_frames=st.integers(5, 200), stride=st.integers(1, 30))
def test_sliding_pieces_begin_every_stride_and_the_last_ends_with_the_video(num_frames, stride):
    firsts = [first for _, first in found(video(num_frames), "9x32x48", kind="sliding", stride=stride)]
    room = max(0, num_frames - 9)
    assert firsts == sorted({*range(0, room, stride), room})


def test_uniform_pieces_reach_from_the_beginning_to_the_end():
    assert [first for _, first in found(video(49), "9x32x48", kind="uniform", count=5)] == [0, 10, 20, 30, 40]
    assert [first for _, first in found(video(9), "9x32x48", kind="uniform", count=5)] == [0]
    assert [first for _, first in found(video(49), "9x32x48", kind="uniform", count=1)] == [0]


def test_more_uniform_pieces_than_frames_are_one_at_each_frame():
    assert [first for _, first in found(video(12), "9x32x48", kind="uniform", count=10**12)] == [0, 1, 2, 3]


def test_pieces_beyond_the_most_are_said():
    result = pieces_of(video(100), buckets("9x32x48"), ClipChoice(kind="sliding", stride=1, most=10))
    assert len(result.pieces) == 10
    assert result.leftover == "82 pieces beyond the first 10 are not used"


@pytest.mark.parametrize("kind", ["head", "chunks", "sliding", "uniform"])
def test_a_video_too_short_for_every_bucket_gives_no_piece(kind):
    assert pieces_of(video(4), buckets("9x32x48", "17x32x48"), ClipChoice(kind=kind)).pieces == ()


@pytest.mark.parametrize("wrong", [{"kind": "tail"}, {"stride": 0}, {"count": 0}, {"most": 0}])
def test_impossible_choices_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong.values())) if "kind" in wrong else next(iter(wrong))):
        ClipChoice(**wrong)
