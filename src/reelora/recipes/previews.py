"""Videos of a training run on its way, which never touch what is trained."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from reelora.components import Bundle, encode_prompts, load_components
from reelora.errors import ConfigError, ReeloraError
from reelora.generate import Clip, Session
from reelora.tensorio import open_tensors, write_tensors
from reelora.train import Team

from . import html
from .config import TrainConfig
from .listener import Listener
from .model import facts_of, find_model, text_fingerprint_of, text_roles_of

__all__ = ["Previews", "check_previews"]


class Previews:
    """Makes the preview videos or pictures of a run: at step 0, where the branches do nothing yet, and every so many steps.

    Prompts of CogVideoX are encoded once, before the transformer is loaded, and the VAE is in memory only while a preview is
    made; so are the text encoders of Stable Diffusion, which are small and may be trained themselves. A preview that fails is
    reported and the run goes on. The processes of a team share the prompts. Where they have split the base between them, all
    make all previews, the first one writes, and one that fails ends the run.
    """

    def __init__(self, config: TrainConfig, listener: Listener, team: Team) -> None:
        self._config, self._listener, self._team = config, listener, team
        self._states = self._encode() if self.are_wanted and facts_of(config.model).fps > 1 else {}

    @property
    def are_wanted(self) -> bool:
        return bool(self._config.preview.prompts) and self._config.preview.every > 0

    def after(self, step: int, parts: Bundle) -> None:
        """Make the previews of ``step`` if it is their turn and they are not there yet."""
        if not self.are_wanted or step % self._config.preview.every:
            return
        missing = self._missing(step)
        if not missing:
            return
        self._listener.say(f"previews at step {step}")
        try:
            self._make(step, missing, parts)
        except (RuntimeError, ReeloraError, OSError) as error:
            if self._config.loop.shard_base:
                raise  # the other processes are somewhere else in the model now
            self._listener.say(f"previews at step {step} failed, training goes on: {error}")

    def _missing(self, step: int) -> list[int]:
        """The prompts that this process makes the previews of: its share, or all where the base is split between processes."""
        prompts = range(len(self._config.preview.prompts))
        if not self._config.loop.shard_base:
            return [index for index in self._team.share(prompts) if not self._path(step, index).exists()]
        are_missing = self._team.as_first([not self._path(step, index).exists() for index in prompts])
        return [index for index in prompts if are_missing[index]]

    def figures(self) -> list[str]:
        """One row per prompt for a page: the base's video first, then those of the steps, all with the same seed."""
        return [
            html.row(prompt, *(_figure(path) for path in sorted(self._folder.glob(f"step-*-{index}.*"))))
            for index, prompt in enumerate(self._config.preview.prompts)
        ]

    @property
    def _folder(self) -> Path:
        return self._config.output / "previews"

    def _path(self, step: int, index: int) -> Path:
        return self._folder / f"step-{step:06d}-{index}{self._suffix}"

    @cached_property
    def _suffix(self) -> str:
        return ".png" if facts_of(self._config.model).fps == 1 else ".mp4"

    def _encode(self) -> dict[str, Tensor]:
        prompts = ["", *self._config.preview.prompts]
        path = self._config.output / "preview-prompts.safetensors"
        model = find_model(self._config.model)
        wanted = {"prompts": json.dumps(prompts), "encoder": text_fingerprint_of(self._config.model)}
        if path.exists() and (stored := open_tensors(path)).metadata == wanted:
            return dict(zip(prompts, stored["states"], strict=True))
        roles = text_roles_of(self._config.model)
        parts = load_components(model, roles=roles, device=self._team.device)
        states = encode_prompts(parts, prompts).states.cpu().contiguous()
        parts.release(*roles)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"states": states}, metadata=wanted)
        return dict(zip(prompts, states, strict=True))

    def _make(self, step: int, indices: Sequence[int], parts: Bundle) -> None:
        lacking = ["vae", *(role for role in parts.text_roles if not self._states and role not in parts.roles)]
        others = load_components(find_model(self._config.model), roles=lacking, device=self._team.device)
        session = Session.of(parts.joined(others), prompt_states=self._states)
        preview, size = self._config.preview, self._config.data.clip_settings(session.facts)
        steps: dict[str, Any] = {} if preview.steps == "model" else {"steps": preview.steps}
        self._folder.mkdir(parents=True, exist_ok=True)
        for index in indices:
            clip = session.generate(
                preview.prompts[index],
                image=preview.images[index] if preview.images else None,
                seed=preview.seed,
                num_frames=size.num_frames,
                height=size.height,
                width=size.width,
                **steps,
            )
            if self._team.is_first or not self._config.loop.shard_base:
                self._save(clip, step, index)

    def _save(self, clip: Clip, step: int, index: int) -> None:
        try:
            replace(clip, metadata={**clip.metadata, "training_step": step}).save(self._path(step, index))
        except OSError as error:
            self._listener.say(f"the preview of prompt {index} at step {step} cannot be written, training goes on: {error}")


def check_previews(config: TrainConfig) -> None:
    """Raise ConfigError unless an image-to-video model has a picture for each prompt, and another model has none.

    Raises OSError for a picture that is not there.
    """
    facts, preview = facts_of(config.model), config.preview
    wanted = len(preview.prompts) if facts.needs_image and preview.every else 0
    if preview.every and len(preview.images) != wanted:
        said = (
            "begins with a picture: give one for each prompt" if facts.needs_image else "begins with no picture: leave them out"
        )
        raise ConfigError(
            f"preview.images has {len(preview.images)} pictures for {len(preview.prompts)} prompts, and {config.model} {said}."
        )
    for path in preview.images:
        with path.open("rb"):
            pass


_KINDS = {".mp4": "video/mp4", ".png": "image/png"}


def _figure(path: Path) -> str:
    step = int(path.stem.split("-")[1])
    return html.figure(path.read_bytes(), kind=_KINDS[path.suffix], caption=f"step {step}" if step else "base")
