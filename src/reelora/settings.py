"""Settings of a verb: frozen models read from TOML and ``path=value`` pairs, with errors that name the nearest key."""

import json
import math
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError, nearest

__all__ = ["Settings"]


class Settings(BaseModel):
    """Base of all settings: right from birth, never changed, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Check ``values``; ConfigError lists everything that is wrong, each with its dotted path."""
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise _refusal(where, [f"{name} {text}" for name, text in _problems(cls, error).items()]) from None
        if odd := [ascii(line)[1:-1] for line in _table_lines(settings, (), comments=False) if not _is_text(line)]:
            raise _refusal(where, [f"{line} holds half a character, or bytes that are no UTF-8" for line in odd])
        return settings

    @classmethod
    def read_toml(cls, path: Path, *, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file and apply ``path=value`` pairs (``loop.steps=200``) over it."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is no TOML file: {error}") from error
        return cls.of(overridden(values, overrides), where=str(path))

    @classmethod
    def with_overrides(cls, overrides: Iterable[str]) -> Self:
        """The defaults with ``path=value`` pairs over them."""
        return cls.of(overridden({}, overrides), where="the settings given")

    def toml(self) -> str:
        """These settings as TOML; reading it back gives equal settings."""
        return "\n".join(_table_lines(self, (), comments=False)).strip() + "\n"

    def commented_toml(self) -> str:
        """The same with a comment over every setting, as a file to start from."""
        return "\n".join(_table_lines(self, (), comments=True)).strip() + "\n"


def overridden(values: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``path=value`` pairs put in; a value is read as TOML, or taken as text where it is none."""
    result = {key: overridden(value, ()) if isinstance(value, Mapping) else value for key, value in values.items()}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not (path and equals):
            raise ConfigError(f"--set {pair!r}: write path=value, for example --set loop.steps=200")
        *parents, leaf = path.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {pair!r}: {parent} is a value and has no settings inside it")
        table[leaf] = _toml_value(text.strip())
    return result


def _refusal(where: str, problems: list[str]) -> ConfigError:
    lines = [f"- {problem}" for problem in problems]
    return ConfigError("\n".join([f"{where}: {len(lines)} of its settings cannot be used:", *lines]))


def _is_text(line: str) -> bool:
    """Whether a file can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in line)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _problems(cls: type[BaseModel], error: ValidationError) -> dict[str, str]:
    """What is wrong, by dotted name; all ways in which a value fails to be one of several types are one problem."""
    found: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for problem in error.errors():
        path = _named_path(cls, problem["loc"])
        name = ".".join(path) or "the whole"
        values[name] = problem["input"]
        found.setdefault(name, []).append(_text(cls, problem, path))
    return {name: _joined(values[name], texts) for name, texts in found.items()}


def _text(cls: type[BaseModel], problem: Mapping[str, Any], path: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"is unknown: {nearest(path[-1], _fields_at(cls, path[:-1]))}"
    if problem["type"] == "missing":
        return "is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _joined(value: object, texts: list[str]) -> str:
    if texts[0].startswith("is "):
        return texts[0]
    return f"is {value!r}: " + ", or ".join(dict.fromkeys(texts))


def _named_path(cls: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The names of a place that a user knows: what follows a plain setting says which of its types was tried."""
    path: list[str] = []
    for part in place:
        path.append(str(part))
        if not _fields_at(cls, path):
            break
    return path


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    """The settings inside the group at ``path``; none where it is a plain setting or unknown."""
    for part in path:
        inner = cls.model_fields[part].annotation if part in cls.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        cls = inner
    return list(cls.model_fields)


def _table_lines(table: BaseModel, path: tuple[str, ...], *, comments: bool) -> Iterator[str]:
    """Plain values first, then one table for every group of settings."""
    groups = []
    if path:
        yield f"\n[{'.'.join(path)}]"
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            groups.append((name, value))
            continue
        if comments and field.description:
            yield from (f"# {line}" for line in field.description.splitlines())
            if choices := _choices(field.annotation):
                yield f"# One of: {', '.join(choices)}."
        yield f"{name} = {_literal(value)}"
    for name, group in groups:
        yield from _table_lines(group, (*path, name), comments=comments)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) in (None, list, tuple, dict, types.UnionType):
        return []
    return [str(choice) for choice in get_args(annotation) if isinstance(choice, str)]


def _literal(value: Any) -> str:
    """A TOML literal: TOML reads JSON's strings, numbers, booleans and lists, but for infinity and the letter DEL."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False).replace("\x7f", "\\u007f")
