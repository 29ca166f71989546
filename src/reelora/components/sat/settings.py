"""SAT's YAML files as one tree of settings, each with the line it comes from.

Files are merged as OmegaConf does: sections are joined, and of everything else the later file wins. Nothing that a YAML names
is made or imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from reelora.errors import ConfigError, FileFormatError, first_few
from reelora.tensorio import expanded, read_sat_yaml, shown

__all__ = ["Setting", "read_settings"]

MAX_SETTINGS = 10_000
"""Aliases can make a short file unfold without end."""
MAX_DEPTH = 32

SECTIONS = ("model", "args", "data", "deepspeed")
"""The top level of a SAT config."""

_TAGS = ("map", "seq", "str", "int", "float", "bool", "null")
_INTERPOLATION = re.compile(r"\$\{")
_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value: plain, a list of settings, or a section of settings by name."""

    value: Any
    file: Path
    line: int

    @property
    def where(self) -> str:
        """File and line, for people."""
        return f"{self.file}:{self.line}"

    @property
    def section(self) -> Mapping[str, "Setting"]:
        """The settings below, none for a plain value."""
        return self.value if isinstance(self.value, Mapping) else {}

    def get(self, *path: str) -> "Setting | None":
        """The setting at a path below this one."""
        found: Setting | None = self
        for name in path:
            found = found.section.get(name) if found else None
        return found

    def plain(self) -> Any:
        """The values without their lines."""
        if isinstance(self.value, Mapping):
            return {name: setting.plain() for name, setting in self.value.items()}
        return [setting.plain() for setting in self.value] if isinstance(self.value, list) else self.value

    def walk(self) -> Iterator["Setting"]:
        """This setting and all below."""
        yield self
        below = self.value.values() if isinstance(self.value, Mapping) else self.value if isinstance(self.value, list) else ()
        for setting in below:
            yield from setting.walk()


def read_settings(paths: Sequence[str | Path]) -> Setting:
    """The settings of one or more YAML files, the later ones over the earlier.

    Raises ConfigError for no file at all and for interpolations, FileFormatError that names the file (and line) that is no SAT
    config, OSError where one cannot be read.
    """
    if not paths:
        raise ConfigError("A SAT checkpoint does not say what model it is: pass the YAML files as sat_config=[...].")
    merged = reduce(_merged, [_read(expanded(path)) for path in paths])
    texts = [setting for setting in merged.walk() if isinstance(setting.value, str) and _INTERPOLATION.search(setting.value)]
    if texts:
        listed = first_few([f"{setting.where}: {shown(setting.value)}" for setting in texts])
        raise ConfigError(
            f"{len(texts)} settings refer to others with ${{...}}, which is not read: {listed}. Write the values."
        )
    return merged


def _merged(earlier: Setting, later: Setting) -> Setting:
    if not isinstance(earlier.value, Mapping) or not isinstance(later.value, Mapping):
        return later
    names = dict.fromkeys([*earlier.value, *later.value])
    both = {name: _chosen(earlier.value.get(name), later.value.get(name)) for name in names}
    return Setting(both, later.file, later.line)


def _chosen(earlier: Setting | None, later: Setting | None) -> Setting:
    if earlier and later:
        return _merged(earlier, later)
    chosen = later or earlier
    assert chosen
    return chosen


def _read(path: Path) -> Setting:
    raw = read_sat_yaml(path)
    try:
        node = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
        setting = _Builder(path).build(node, 0) if node else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: no valid YAML: {shown(' '.join(str(error).split()))}") from error
    if setting is None or not isinstance(setting.value, Mapping) or not set(SECTIONS) & set(setting.value):
        raise FileFormatError(f"{path}: is no SAT config, which has one of the sections {', '.join(SECTIONS)}.")
    return setting


class _Builder:
    """Turns the nodes of one file into settings."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, depth: int) -> Setting:
        self._count += 1
        line = node.start_mark.line + 1
        if self._count > MAX_SETTINGS or depth > MAX_DEPTH:
            raise ValueError(f"line {line}: it has more than {MAX_SETTINGS} settings, or more than {MAX_DEPTH} in each other")
        return Setting(self._value(node, depth, line), self._path, line)

    def _value(self, node: yaml.Node, depth: int, line: int) -> Any:
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            raise ValueError(f"line {line}: {shown(node.tag)} is nothing that a config holds")
        if isinstance(node, yaml.MappingNode):
            return self._section(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, depth + 1) for item in node.value]
        assert isinstance(node, yaml.ScalarNode)
        # YAML 1.1 takes 1e-4 for a word; OmegaConf and everybody else for a number.
        is_number = node.style is None and _FLOAT.fullmatch(node.value)
        return float(node.value) if is_number else self._scalars.construct_object(node)

    def _section(self, node: yaml.MappingNode, depth: int) -> dict[str, Setting]:
        section: dict[str, Setting] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line}: a name is no word")
            if key.value in section:
                raise ValueError(f"line {line}: {shown(key.value)} stands there twice")
            built = self.build(value, depth + 1)
            section[key.value] = Setting(built.value, self._path, line)
        return section
