"""Videos of a training run on its way, which never touch what is trained."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reelora.components import Bundle, encode_prompts, fingerprint_of, load_components
from reelora.errors import ReeloraError
from reelora.generate import Session
from reelora.tensorio import open_tensors, write_tensors
from reelora.train import Team

from . import html
from .config import TrainConfig
from .listener import Listener
from .model import find_model

__all__ = ["Previews"]


class Previews:
    """Makes the preview videos of a run: at step 0, where the branches do nothing yet, and every so many steps.

    Prompts are encoded once, before the transformer is loaded, and the VAE is in memory only while a preview is made. A preview
    that fails is reported and the run goes on. The processes of a team share the prompts.
    """

    def __init__(self, config: TrainConfig, listener: Listener, team: Team) -> None:
        self._config, self._listener, self._team = config, listener, team
        self._states = self._encode() if self.are_wanted else {}

    @property
    def are_wanted(self) -> bool:
        return bool(self._config.preview.prompts) and self._config.preview.every > 0

    def after(self, step: int, parts: Bundle) -> None:
        """Make the previews of ``step`` if it is their turn and they are not there yet."""
        if not self.are_wanted or step % self._config.preview.every:
            return
        mine = self._team.share(range(len(self._config.preview.prompts)))
        missing = [index for index in mine if not self._path(step, index).exists()]
        if not missing:
            return
        self._listener.say(f"previews at step {step}")
        try:
            self._make(step, missing, parts)
        except (RuntimeError, ReeloraError, OSError) as error:
            self._listener.say(f"previews at step {step} failed, training goes on: {error}")

    def figures(self) -> list[str]:
        """One row per prompt for a page: the base's video first, then those of the steps, all with the same seed."""
        return [
            html.row(prompt, *(_figure(path) for path in sorted(self._folder.glob(f"step-*-{index}.mp4"))))
            for index, prompt in enumerate(self._config.preview.prompts)
        ]

    @property
    def _folder(self) -> Path:
        return self._config.output / "previews"

    def _path(self, step: int, index: int) -> Path:
        return self._folder / f"step-{step:06d}-{index}.mp4"

    def _encode(self) -> dict[str, Tensor]:
        prompts = ["", *self._config.preview.prompts]
        path = self._config.output / "preview-prompts.safetensors"
        model = find_model(self._config.model)
        wanted = {"prompts": json.dumps(prompts), "encoder": fingerprint_of(model, "tokenizer", "text_encoder")}
        if path.exists() and (stored := open_tensors(path)).metadata == wanted:
            return dict(zip(prompts, stored["states"], strict=True))
        parts = load_components(model, roles=["tokenizer", "text_encoder"], device=self._team.device)
        states = encode_prompts(parts, prompts).states.cpu().contiguous()
        parts.release("text_encoder")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"states": states}, metadata=wanted)
        return dict(zip(prompts, states, strict=True))

    def _make(self, step: int, indices: Sequence[int], parts: Bundle) -> None:
        vae = load_components(find_model(self._config.model), roles=["vae"], device=self._team.device)
        session = Session.of(parts.joined(vae), prompt_states=self._states)
        size = self._config.data.clip_settings(session.facts)
        self._folder.mkdir(parents=True, exist_ok=True)
        for index in indices:
            clip = session.generate(
                self._config.preview.prompts[index],
                seed=self._config.preview.seed,
                num_frames=size.num_frames,
                height=size.height,
                width=size.width,
            )
            replace(clip, metadata={**clip.metadata, "training_step": step}).save(self._path(step, index))


def _figure(path: Path) -> str:
    step = int(path.stem.split("-")[1])
    return html.figure(path.read_bytes(), kind="video/mp4", caption=f"step {step}" if step else "base")
