"""Where each role of a SAT model comes from: the checkpoint, a path that the caller names, or one that the YAML names."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from reelora.components.folder import Source, locate
from reelora.components.part import Part
from reelora.components.roles import TOKENIZER_FILES
from reelora.errors import ComponentError
from reelora.tensorio import Tensors

from .architecture import SatModel
from .checkpoint import SatCheckpoint, is_checkpoint, open_sat
from .tensors import in_our_names
from .text_encoder import t5_config

__all__ = ["SatSources"]

CLASSES: Mapping[str, str] = {
    "transformer": "CogVideoXTransformer3DModel",
    "vae": "AutoencoderKLCogVideoX",
    "text_encoder": "T5EncoderModel",
    "tokenizer": "T5Tokenizer",
    "scheduler": "CogVideoXDPMScheduler",
}
SENTENCE_PIECES = "spiece.model"


class SatSources:
    """Finds the roles of one SAT model."""

    def __init__(self, model: SatModel, path: Path, overrides: Mapping[str, Path]) -> None:
        self.model = model
        self.path = path
        self._overrides = overrides

    @cached_property
    def checkpoint(self) -> SatCheckpoint:
        """The files of the model, mapped when the first role needs them."""
        return open_sat(self.path)

    def find(self, role: str) -> Part:
        """One role. Raises ComponentError that names the path that is missing and who asked for it."""
        if role not in _FINDERS:
            raise ComponentError(f"{role}: a SAT model has none; it has {', '.join(_FINDERS)}.")
        override = self._overrides.get(role)
        if override is None:
            return _FINDERS[role](self)
        if role in _FROM_TENSORS and is_checkpoint(override):
            return self._of_checkpoint(role, open_sat(override))
        if role == "tokenizer":
            return self._tokenizer_in(override, "paths")
        return Part(source=self._located(role, override))

    def _located(self, role: str, path: Path) -> Source:
        """A part in diffusers' layout; of a bare file of weights, the YAML says what it is."""
        if path.is_file() and role in ("transformer", "vae"):
            return self._source(role, path)
        if path.is_file():
            raise ComponentError(f"{role}: {path} is a file; name the folder with its config.")
        return locate(path, role, path)

    def _transformer(self) -> Part:
        if not self.checkpoint.has("transformer"):
            names = ", ".join(list(self.checkpoint.tensors)[:3]) or "nothing"
            raise ComponentError(
                f"transformer: {self.path} holds no tensor of model.diffusion_model; it holds {names}. Is it the VAE's file?"
            )
        return self._of_checkpoint("transformer", self.checkpoint)

    def _vae(self) -> Part:
        if self._is_inside("vae"):
            return self._of_checkpoint("vae", self.checkpoint)
        path = self.model.vae_file
        if path is None:
            raise ComponentError(f"vae: {self.path} holds none and the YAML names none; pass paths={{'vae': ...}}.")
        if not path.exists():
            raise ComponentError(
                f"vae: there is no {path}, which {self.model.vae_where} names; correct it, or pass paths={{'vae': ...}}."
            )
        return self._of_checkpoint("vae", open_sat(path)) if is_checkpoint(path) else Part(source=self._located("vae", path))

    def _text_encoder(self) -> Part:
        if self._is_inside("text_encoder"):
            return self._of_checkpoint("text_encoder", self.checkpoint)
        return Part(source=self._located("text_encoder", self._text_folder("text_encoder")))

    def _tokenizer(self) -> Part:
        beside = self._overrides.get("text_encoder")
        if beside is not None and any((beside / name).is_file() for name in TOKENIZER_FILES):
            return self._tokenizer_in(beside, "paths")
        folder = self._text_folder("tokenizer")
        return self._tokenizer_in(folder, "the YAML")

    def _scheduler(self) -> Part:
        return Part(source=self._source("scheduler", None))

    def _text_folder(self, role: str) -> Path:
        text = self.model.text
        if text is None:
            raise ComponentError(
                f"{role}: {self.path} holds none and the YAML has no conditioner_config; pass paths={{{role!r}: ...}}."
            )
        if not text.folder.is_dir():
            raise ComponentError(
                f"{role}: there is no folder {text.folder}, which {text.where} names; correct it, "
                f"or pass paths={{{role!r}: ...}}."
            )
        return text.folder

    def _tokenizer_in(self, folder: Path, who: str) -> Part:
        """A folder with a tokenizer's config, or with nothing but its sentence pieces."""
        if (folder / "tokenizer_config.json").is_file() or not (folder / SENTENCE_PIECES).is_file():
            if not folder.is_dir():
                raise ComponentError(f"tokenizer: there is no folder {folder}, which {who} names.")
            return Part(source=locate(folder, "tokenizer", folder))
        return Part(source=Source(role="tokenizer", class_name=CLASSES["tokenizer"], folder=folder, config={}))

    def _is_inside(self, role: str) -> bool:
        return self.checkpoint.has(role)

    def _source(self, role: str, weights: Path | None) -> Source:
        config = self.model.config(role)
        assert config is not None
        return Source(
            role=role,
            class_name=CLASSES[role],
            folder=self.path,
            config=config,
            weights=weights,
            described_in=self.model.where,
        )

    def _of_checkpoint(self, role: str, checkpoint: SatCheckpoint) -> Part:
        tensors = checkpoint.role(role)
        config = self._config(role, tensors, checkpoint.path)
        ours, reading = in_our_names(
            role,
            tensors,
            checkpoint.path,
            num_levels=len(config.get("block_out_channels", ())),
            is_mapped=checkpoint.is_mapped,
            patch=_convolution(config) if role == "transformer" else (),
        )
        source = Source(
            role=role,
            class_name=CLASSES[role],
            folder=checkpoint.path,
            config=config,
            weights=checkpoint.path,
            described_in=self.model.where,
        )
        return Part(source=source, tensors=ours, cuts=reading.cuts, left_out=reading.left_out)

    def _config(self, role: str, tensors: Tensors, path: Path) -> Mapping[str, Any]:
        if role == "text_encoder":
            return t5_config(tensors, path, self.model.text.folder if self.model.text else None)
        config = self.model.config(role)
        if config is None:
            raise ComponentError(f"{role}: {path} holds one, but the YAML does not describe it: it has no first_stage_config.")
        return config


def _convolution(config: Mapping[str, Any]) -> tuple[int, ...]:
    """(in, height, width) of the patch embedding of 1.0; nothing for 1.5, which has a matrix."""
    return (config["in_channels"], config["patch_size"], config["patch_size"]) if config["patch_size_t"] is None else ()


_FROM_TENSORS = ("transformer", "vae", "text_encoder")
_FINDERS: Mapping[str, Callable[[SatSources], Part]] = {
    "tokenizer": SatSources._tokenizer,
    "text_encoder": SatSources._text_encoder,
    "transformer": SatSources._transformer,
    "vae": SatSources._vae,
    "scheduler": SatSources._scheduler,
}
