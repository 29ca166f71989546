"""Which weights a video was made with."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from reelora.adapters import BASE_VALUES
from reelora.components import Bundle, PartReport, fingerprint_of
from reelora.lora import base_fingerprints
from reelora.tensorio import fingerprint, open_tensors

__all__ = ["BaseModel"]

_INDEX = "model_index.json"
_SAFETENSORS = (".safetensors", ".json")


class BaseModel:
    """What is found out about a loaded denoiser when it is first asked for; other weights need another one."""

    def __init__(self, parts: Bundle) -> None:
        self._parts = parts
        self._report = _report_of(parts)

    def is_of(self, parts: Bundle) -> bool:
        """Whether these are the weights that a bundle has now."""
        return self._report is _report_of(parts)

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """What adapters store of the base they were trained on."""
        return base_fingerprints(getattr(self._parts, self._parts.denoiser))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the denoiser: of its files in diffusers' layout, else of its values, as adapters store it."""
        source = self._report.source
        if source.is_relative_to(self._parts.root) and (self._parts.root / _INDEX).is_file():
            return fingerprint_of(self._parts.root, self._parts.denoiser)
        return fingerprint(open_tensors(source)) if _is_safetensors(source) else self.fingerprints[BASE_VALUES]


def _report_of(parts: Bundle) -> PartReport:
    return next(part for part in parts.report.parts if part.role == parts.denoiser)


def _is_safetensors(source: Path) -> bool:
    return source.suffix in _SAFETENSORS or any(source.glob("*.safetensors"))
