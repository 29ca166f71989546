"""Which clips a folder holds and what their captions say; nothing is decoded here."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Literal, overload

from reelora.errors import DataError, FileFormatError, first_few, nearest
from reelora.tensorio import is_text, shown

__all__ = [
    "CAPTION_COLUMNS",
    "MEDIA",
    "VIDEO_COLUMNS",
    "CaptionLines",
    "ClipList",
    "ClipSource",
    "Media",
    "list_clips",
]

Media = Literal["videos", "images", "both"]
"""What counts as a clip where no list names the files."""

CaptionLines = Literal["joined", "apart"]
"""Whether the lines of a .txt file are one caption or several."""

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MEDIA: Mapping[Media, frozenset[str]] = {
    "videos": VIDEO_SUFFIXES,
    "images": IMAGE_SUFFIXES,
    "both": VIDEO_SUFFIXES | IMAGE_SUFFIXES,
}

VIDEO_COLUMNS = ("file_name", "video")
CAPTION_COLUMNS = ("text", "caption", "prompt")
REPEATS_COLUMN = "repeats"

_SHOWN = 20
_MOST_REPEATS = 1_000_000
"""In an epoch; whoever wants a clip that often wants it alone."""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """One clip of a data set. ``name`` is its path inside the folder, with forward slashes."""

    name: str
    path: Path
    captions: tuple[str, ...]
    """At least one; which of them is seen changes from epoch to epoch."""
    repeats: int = 1
    """How often it is seen in an epoch."""

    @property
    def caption(self) -> str:
        """Its first caption."""
        return self.captions[0]


@dataclass(frozen=True, kw_only=True)
class ClipList(Sequence[ClipSource]):
    """The clips of ``folder`` in a fixed order, the ``form`` that named them, and what lies there but is not used."""

    folder: Path
    form: str
    clips: tuple[ClipSource, ...]
    unused: tuple[str, ...]
    """Videos that the list does not name, and captions that have no video."""

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, index: int) -> ClipSource: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ClipSource, ...]: ...
    def __getitem__(self, index: int | slice) -> ClipSource | tuple[ClipSource, ...]:
        return self.clips[index]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What a form says of one clip: ``where`` it stands, the file's name, the captions if there are any, and repeats."""

    where: str
    name: str
    captions: tuple[str, ...]
    repeats: object = 1
    is_text: bool = True


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How the forms are to be read."""

    video_column: str | None
    caption_column: str | None
    caption_lines: CaptionLines
    media: Media


def list_clips(
    folder: Path,
    *,
    video_column: str | None = None,
    caption_column: str | None = None,
    caption_lines: CaptionLines = "joined",
    default_caption: str = "",
    media: Media = "videos",
) -> ClipList:
    """The clips and captions of a folder, in any of the four forms that are in use.

    - ``metadata.jsonl`` or ``metadata.csv``, a row per clip with ``file_name`` (or ``video``) and ``text`` (or
      ``caption`` or ``prompt``); other columns are named by ``video_column`` and ``caption_column``. More captions stand
      in columns of the same name with ``_2``, ``_3`` ... behind, or in a JSON list; ``repeats`` is how often it is seen;
    - ``videos.txt`` with ``prompts.txt``, a line per clip in each, as CogVideo's ``finetune/`` reads them;
    - otherwise every video in the folder and below, also behind links, with a ``.txt`` of the same stem beside it, whose lines
      are one caption or, with ``caption_lines="apart"``, several.

    A list keeps its order, a folder is sorted by name; whatever begins with a dot is left alone. Names are relative
    to the folder. Captions have their white space collapsed; a clip without one gets ``default_caption`` if there is one.
    Raises DataError, which names everything that is wrong at once: no folder, no clip, two lists, rows without a name or
    caption, missing files, files named twice, names that lead out of the folder, names and captions that no UTF-8 file can
    repeat. Whether a video can be decoded is for ``plan_clips`` to say.
    """
    folder = Path(folder)
    names = _names_below(folder)
    form = _form_of(folder, names)
    reading = _Reading(video_column=video_column, caption_column=caption_column, caption_lines=caption_lines, media=media)
    rows = list(_FORMS[form](folder, names, reading))
    if default_caption.strip():
        rows = [
            row if any(map(str.strip, row.captions)) or not row.is_text else replace(row, captions=(default_caption,))
            for row in rows
        ]
    if not rows:
        raise DataError(f"{folder}: holds no clip. {_WANTED}")
    clips = _checked(folder, form, rows)
    return ClipList(folder=folder, form=form, clips=clips, unused=_unused(form, names, clips, media))


# The four forms.


def _rows_of_jsonl(folder: Path, names: Sequence[str], reading: _Reading) -> Iterator[_Row]:
    path = folder / "metadata.jsonl"
    rows = {number: _json_object(line) for number, line in enumerate(_text_of(path).split("\n"), 1) if line.strip()}
    bad = [f"line {number}" for number, row in rows.items() if row is None]
    if bad:
        raise FileFormatError(f"{path}: {len(bad)} of {len(rows)} lines are no JSON object, first {first_few(bad)}.")
    yield from _rows_of_table(path, {number: row for number, row in rows.items() if row is not None}, reading)


def _rows_of_csv(folder: Path, names: Sequence[str], reading: _Reading) -> Iterator[_Row]:
    path = folder / "metadata.csv"
    try:
        rows = dict(_numbered(csv.DictReader(StringIO(_text_of(path), newline=""))))
    except csv.Error as error:
        raise FileFormatError(f"{path}: is no CSV ({error}).") from error
    bad = [f"line {number}" for number, row in rows.items() if None in row]
    if bad:
        raise DataError(
            f"{path}: {len(bad)} of {len(rows)} rows have more cells than the header, first {first_few(bad)}; "
            "put captions with a comma in double quotes."
        )
    yield from _rows_of_table(path, rows, reading)


def _numbered(reader: csv.DictReader) -> Iterator[tuple[int, Mapping[str, object]]]:
    for row in reader:
        yield reader.line_num, row


def _rows_of_table(path: Path, rows: Mapping[int, Mapping[str, object]], reading: _Reading) -> Iterator[_Row]:
    known = list(dict.fromkeys(str(name) for row in rows.values() for name in row))
    if not rows:
        return
    video = _column(path, known, reading.video_column, VIDEO_COLUMNS, "video_column")
    caption = _column(path, known, reading.caption_column, CAPTION_COLUMNS, "caption_column")
    more = re.compile(rf"{re.escape(caption)}(_\d+)?")
    columns = [name for name in known if more.fullmatch(name)]
    for number, row in rows.items():
        yield _Row(
            where=f"{path.name}:{number}",
            name=_cell(row.get(video)),
            captions=_with_text([text for column in columns for text in _cells(row.get(column))]),
            repeats=1 if row.get(REPEATS_COLUMN) in (None, "") else row[REPEATS_COLUMN],
        )


def _rows_of_lines(folder: Path, names: Sequence[str], reading: _Reading) -> Iterator[_Row]:
    videos, prompts = (_lines_of(folder / name) for name in ("videos.txt", "prompts.txt"))
    if len(videos) != len(prompts):
        raise DataError(
            f"{folder}: videos.txt names {len(videos)} clips and prompts.txt has {len(prompts)} captions; "
            "each clip needs its line in both (empty lines do not count)."
        )
    for number, (video, prompt) in enumerate(zip(videos, prompts, strict=True), 1):
        yield _Row(where=f"videos.txt:{number}", name=video, captions=(prompt,))


def _rows_of_files(folder: Path, names: Sequence[str], reading: _Reading) -> Iterator[_Row]:
    present = set(names)
    for name in (name for name in names if _suffix(name) in MEDIA[reading.media]):
        raw = (folder / _caption_name(name)).read_bytes() if _caption_name(name) in present else None
        text = _decoded(raw) if raw is not None else None
        captions = () if text is None else tuple(_CAPTIONS[reading.caption_lines](text))
        yield _Row(where=name, name=name, captions=captions, is_text=raw is None or text is not None)


def _with_text(texts: Sequence[str]) -> tuple[str, ...]:
    """Those that say something; one empty caption where none does, which is then named."""
    return tuple(text for text in texts if text.strip()) or ("",)


_CAPTIONS: Mapping[CaptionLines, Callable[[str], Sequence[str]]] = {
    "joined": lambda text: [text],
    "apart": lambda text: _with_text(text.splitlines()),
}

_BESIDE = "captions beside the videos"
_FORMS: Mapping[str, Callable[[Path, Sequence[str], _Reading], Iterator[_Row]]] = {
    "metadata.jsonl": _rows_of_jsonl,
    "metadata.csv": _rows_of_csv,
    "videos.txt": _rows_of_lines,
    _BESIDE: _rows_of_files,
}
_WANTED = (
    "Put videos (.mp4, .mov, .webm ...) there, each with a .txt caption of the same name, or a metadata.jsonl that names them."
)


def _form_of(folder: Path, names: Sequence[str]) -> str:
    lists = [form for form in _FORMS if form in names]
    if len(lists) > 1:
        raise DataError(f"{folder}: holds {' and '.join(lists)}, which both name clips; keep one of them.")
    if lists == ["videos.txt"] and "prompts.txt" not in names:
        hint = "; rename prompt.txt" if "prompt.txt" in names else ""
        raise DataError(f"{folder}: holds videos.txt but no prompts.txt with a caption for each line{hint}.")
    return lists[0] if lists else _BESIDE


# One check for all forms.


def _checked(folder: Path, form: str, rows: Sequence[_Row]) -> tuple[ClipSource, ...]:
    named = Counter(_plain(row.name) for row in rows if row.name)
    stems = Counter(_caption_name(name) for name in named) if form == _BESIDE else Counter()
    wrongs = {
        "name no file": [row.where for row in rows if not row.name],
        "lead out of the folder (give names relative to it)": [_shown(row) for row in rows if _escapes(row.name)],
        "are missing": [_shown(r) for r in rows if r.name and not _escapes(r.name) and not (folder / r.name).is_file()],
        "are named more than once": [name for name, count in named.items() if count > 1],
        "share one caption with another video": [name for name in named if stems and stems[_caption_name(name)] > 1],
        "have a name that is no UTF-8 text (rename the file)": [shown(row.name) for row in rows if not is_text(row.name)],
        "have a caption that is no UTF-8 text": [row.name for row in rows if not row.is_text],
        "have a caption with half a character (\\ud800 to \\udfff)": [
            _shown(row) for row in rows if not all(map(is_text, row.captions))
        ],
        "have no caption": [row.name for row in rows if row.is_text and not row.captions],
        "have an empty caption": [_shown(row) for row in rows if row.captions and not any(map(str.strip, row.captions))],
        f"have repeats that are no whole number from 1 to {_MOST_REPEATS:,}": [
            _shown(row) for row in rows if not _count(row.repeats)
        ],
    }
    problems = [
        f"{len(bad)} of {len(rows)} clips {what}: {first_few(bad, count=_SHOWN)}" for what, bad in wrongs.items() if bad
    ]
    if problems:
        raise DataError(f"{folder}: {'; '.join(problems)}.")
    return tuple(
        ClipSource(
            name=_plain(row.name),
            path=folder / _plain(row.name),
            captions=tuple(dict.fromkeys(" ".join(text.split()) for text in row.captions)),
            repeats=_count(row.repeats),
        )
        for row in rows
    )


def _unused(form: str, names: Sequence[str], clips: Sequence[ClipSource], media: Media) -> tuple[str, ...]:
    used = {clip.name for clip in clips}
    if form == _BESIDE:
        used |= {_caption_name(clip.name) for clip in clips}
    kinds = MEDIA[media] | {".txt"} if form == _BESIDE else MEDIA[media]
    return tuple(name for name in names if _suffix(name) in kinds and name not in used)


def _escapes(name: str) -> bool:
    plain = PurePosixPath(_plain(name))
    return plain.is_absolute() or ".." in plain.parts


def _plain(name: str) -> str:
    return PurePosixPath(normpath(name)).as_posix()


def _shown(row: _Row) -> str:
    return row.name if row.where == row.name else f"{row.where} {row.name!r}"


# Reading names and texts.


def _names_below(folder: Path) -> list[str]:
    """Files of the folder and below, sorted; whatever is hidden stays so."""
    if not folder.is_dir():
        state = "is a file; give the folder that holds it" if folder.is_file() else "there is no such folder"
        raise DataError(f"{folder}: {state}. {_WANTED}")
    return sorted(path.relative_to(folder).as_posix() for path in _files_below(folder, frozenset()))


def _files_below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """Links to folders are followed, but not back to a folder that they lie in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_below(path, above | {real})
        elif path.is_file():
            yield path


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _caption_name(name: str) -> str:
    return PurePosixPath(name).with_suffix(".txt").as_posix()


def _text_of(path: Path) -> str:
    text = _decoded(path.read_bytes())
    if text is None:
        raise FileFormatError(f"{path}: is no UTF-8 text; save it as UTF-8.")
    return text


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _lines_of(path: Path) -> list[str]:
    return [line.strip() for line in _text_of(path).split("\n") if line.strip()]


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cell(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _cells(value: object) -> list[str]:
    """The captions of a cell: a text, or a list of texts."""
    return [_cell(text) for text in (value if isinstance(value, list) else [value])]


def _count(value: object) -> int:
    """A whole number from 1 to the most, 0 where it is none."""
    text = str(value)
    is_count = text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST_REPEATS))
    return int(text) if is_count and int(text) <= _MOST_REPEATS else 0


def _column(path: Path, known: Sequence[str], asked: str | None, usual: Sequence[str], option: str) -> str:
    """The column that was asked for, or the only one of the usual names."""
    if asked is not None and asked not in known:
        raise DataError(f"{path}: has no column {asked!r}; {nearest(asked, known)}")
    found = [asked] if asked is not None else [name for name in usual if name in known]
    if not found:
        raise DataError(f"{path}: has no column {' or '.join(usual)} (it has {', '.join(known)}); name it with {option}=.")
    if len(found) > 1:
        raise DataError(f"{path}: has the columns {' and '.join(found)}; say with {option}= which one is meant.")
    return found[0]
