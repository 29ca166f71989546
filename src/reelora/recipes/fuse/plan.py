"""Everything about a fuse that can be wrong, found out before a byte is written."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from reelora.adapters import ROLES, fingerprints_of
from reelora.errors import ConfigError, first_few
from reelora.lora import base_notes, check_rounding, noise_of
from reelora.recipes.files import check_parent, check_room

from .base import Base, Files, find_base, is_weight_file
from .match import Adapters, Tensors, match
from .provenance import PROVENANCE, fused_again, provenance_of

__all__ = ["FusePlan", "plan_fuse"]

_DENOISERS = ("transformer", "unet")
"""The roles whose fingerprints trained adapters carry."""


@dataclass(frozen=True, kw_only=True)
class FusePlan:
    """What will be written, and from what."""

    base: Base
    output: Path
    adapters: Adapters
    rounding: str
    seed: int
    link: bool
    """Whether weights that do not change become hard links."""
    tensors: Mapping[str, Tensors]
    """By role."""
    files: Files

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What every file with a fused weight says in its header."""
        rounding = f"stochastic, seed {self.seed}" if self.rounding == "stochastic" else self.rounding
        return provenance_of(self.base, self.adapters, rounding)

    @property
    def metadata(self) -> dict[str, str]:
        """The same as a header takes it."""
        return {PROVENANCE: json.dumps(self.provenance, ensure_ascii=False)}

    @property
    def num_fused(self) -> int:
        return sum(map(len, self.tensors.values()))

    @property
    def num_tensors(self) -> int:
        """Of the roles that are changed, fused ones among them."""
        return sum(map(len, self.base.stores.values()))

    @property
    def size_bytes(self) -> int:
        """Bytes that will be written."""
        files = [*self.files.rewritten.values(), *(file for file in self.files.copied.values() if not self.is_linked(file))]
        return sum(file.stat().st_size for file in files)

    def noise(self, name: str) -> torch.Generator | None:
        """What decides the rounding of one tensor, the same in every run; None to round to the nearest."""
        return noise_of(self.rounding, self.seed)(name)

    def is_linked(self, file: Path) -> bool:
        """Whether a file that does not change is linked: configs never are, since they are edited in place."""
        return self.link and is_weight_file(file)

    def notes(self) -> Iterator[str]:
        """What a user should know beforehand."""
        for name, (adapter, strength) in self.adapters.items():
            yield f"{name} at strength {strength:g}: {len(adapter.pairs)} modules; scale by {adapter.scale_source}"
            if adapter.tokens:
                yield f"{name}: its words {first_few([*adapter.tokens])} are no weights and are left out; load them beside."
        if twice := fused_again(self.provenance):
            yield f"The base holds {first_few(twice)} already: what is added now comes on top."
        if self.files.left_out:
            listed = first_few([str(path) for path in self.files.left_out])
            yield f"{len(self.files.left_out)} files of other weights are left out, since they would not be fused: {listed}"
        if not self.num_fused:
            yield "No adapter acts, every strength is 0: the output is a copy."


def plan_fuse(
    base: str, adapters: Adapters, output: Path, *, rounding: str = "nearest", seed: int = 0, link: bool = False
) -> tuple[FusePlan, list[str]]:
    """Find the base, match every module of every adapter with a weight, and see that the output can be written.

    With it comes what a user should know. Raises ConfigError for settings and outputs that cannot be; MismatchError with all
    modules of all adapters that the base has not, or has otherwise; UnknownScaleError and AdapterError for adapters that cannot
    be used; what `find_base` raises; and OSError where the output has no folder or the disk no room.
    """
    _check_settings(adapters, rounding)
    roles = [role for role in ROLES if any(role in adapter.roles for adapter, _ in adapters.values())]
    found = find_base(base, roles)
    _check_output(found, output)
    tensors = match(adapters, found)
    for adapter, _ in adapters.values():
        adapter.check_usable()
    plan = FusePlan(
        base=found,
        output=output,
        adapters=dict(adapters),
        rounding=rounding,
        seed=seed,
        link=link,
        tensors=tensors,
        files=found.files(),
    )
    check_room(plan.size_bytes, output)
    return plan, [*plan.notes(), *_base_notes(found, adapters)]


def _base_notes(base: Base, adapters: Adapters) -> Iterator[str]:
    """Where an adapter was trained on other weights; MismatchError where on other layers."""
    for role in set(base.stores) & set(_DENOISERS):
        found = fingerprints_of(base.stores[role])
        for name, (adapter, _) in adapters.items():
            yield from base_notes(adapter, lambda found=found: found, name=name) if role in adapter.roles else ()


def _check_settings(adapters: Adapters, rounding: str) -> None:
    if not adapters:
        raise ConfigError("No adapter is given: name at least one, with its strength.")
    if odd := [f"{name} ({strength})" for name, (_, strength) in adapters.items() if not math.isfinite(strength)]:
        raise ConfigError(f"{len(odd)} strengths are no finite numbers: {first_few(odd)} (1.0: as trained, 0: off).")
    check_rounding(rounding)


def _check_output(base: Base, output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} is there already and is left as it is; name another one.")
    check_parent(output)
    if base.is_file and output.suffix != ".safetensors":
        raise ConfigError(f"{output}: the base is one file, so the output is one too: name it FILE.safetensors.")
    if not base.is_file and output.suffix == ".safetensors":
        raise ConfigError(f"{output}: the base is a folder, so the output is one too: name it without .safetensors.")
    if base.path.resolve() in output.resolve().parents:
        raise ConfigError(f"{output} lies inside the base {base.path}: name a folder outside of it.")
