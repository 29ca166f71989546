"""One engine that reads any class of SAT out of its settings, by a table of its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelora.errors import nearest
from reelora.tensorio import expanded, shown

from .settings import Setting

__all__ = ["Param", "Read", "SatClass", "Test", "read_class"]

Test = Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True)
class Param:
    """What one parameter may be and what becomes of it."""

    test: Test = lambda value: True
    must: str = ""
    """What it has to be, in words."""
    default: Any = None
    is_required: bool = False
    unused: str = ""
    """Why it does not matter here; then it may be anything."""
    classes: tuple["SatClass", ...] = ()
    """What it makes, where it is a ``target`` with ``params`` or a section of its own."""
    is_list: bool = False
    """Whether it is a list of one such section."""


@dataclass(frozen=True, kw_only=True)
class SatClass:
    """One class that a YAML may name, or a plain section where ``target`` is empty."""

    target: str
    params: Mapping[str, Param] = field(default_factory=dict)
    beside: Mapping[str, Param] = field(default_factory=dict)
    """Settings that stand beside ``target`` and ``params``."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A class as it was set: the values of all its parameters, defaults among them."""

    target: str
    where: str
    values: Mapping[str, Any]
    given: Mapping[str, Setting]
    """The values that are written."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def line(self, name: str) -> str:
        """Where a value stands, or else the class."""
        return self.given[name].where if name in self.given else self.where

    def path(self, name: str) -> Path:
        """A path among the values, which is relative to the file that names it."""
        return self.given[name].file.parent / expanded(self.values[name])


def read_class(setting: Setting, classes: tuple[SatClass, ...], problems: list[str]) -> Read | None:
    """The class of a section with its values; everything that is wrong goes to ``problems``, with its line."""
    if not isinstance(setting.value, Mapping):
        problems.append(f"{setting.where}: {shown(setting.plain())} is no section")
        return None
    plain = next((row for row in classes if not row.target), None)
    if plain:
        return _read(setting, plain, setting.section, {}, problems)
    row = _chosen(setting, classes, problems)
    if row is None:
        return None
    params = setting.get("params")
    beside = {name: value for name, value in setting.section.items() if name not in ("target", "params")}
    return _read(setting, row, params.section if params else {}, beside, problems)


def _chosen(setting: Setting, classes: tuple[SatClass, ...], problems: list[str]) -> SatClass | None:
    target = setting.get("target")
    name = target.value if target else None
    found = next((row for row in classes if row.target == name), None)
    if found is None:
        where = target.where if target else setting.where
        known = " or ".join(row.target for row in classes)
        problems.append(f"{where}: target is {shown(name)}; what is known here is {known}")
    return found


def _read(
    setting: Setting, row: SatClass, params: Mapping[str, Setting], beside: Mapping[str, Setting], problems: list[str]
) -> Read:
    values = {**_values(setting, row.params, params, problems), **_values(setting, row.beside, beside, problems)}
    return Read(target=row.target, where=setting.where, values=values, given={**params, **beside})


def _values(owner: Setting, params: Mapping[str, Param], given: Mapping[str, Setting], problems: list[str]) -> dict[str, Any]:
    for name in given.keys() - params.keys():
        hint = nearest(name, params) if params else "none is known here"
        problems.append(f"{given[name].where}: {shown(name)} is no setting that is known here, {hint}")
    missing = [name for name, param in params.items() if param.is_required and name not in given]
    problems += [f"{owner.where}: {name} is missing" for name in missing]
    return {
        name: _value(name, param, given[name], problems) if name in given else param.default for name, param in params.items()
    }


def _value(name: str, param: Param, setting: Setting, problems: list[str]) -> Any:
    if param.unused:
        return setting.plain()
    if param.classes:
        section = _only(setting) if param.is_list else setting
        if section is None:
            problems.append(f"{setting.where}: {name} must be a list of one section")
            return None
        return read_class(section, param.classes, problems)
    value = setting.plain()
    if not param.test(value):
        problems.append(f"{setting.where}: {name} is {_told(value)}, it must be {param.must}")
    return value


def _only(setting: Setting) -> Setting | None:
    return setting.value[0] if isinstance(setting.value, list) and len(setting.value) == 1 else None


def _told(value: Any) -> str:
    """A value for people."""
    return shown(value) if isinstance(value, str) else str(value)[:80]
