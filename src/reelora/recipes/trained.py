"""What of a model is trained: its denoiser, and its text encoders where the settings say so."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from reelora.adapters import Adapter, LoraSpec
from reelora.components import Bundle, load_components
from reelora.errors import ConfigError
from reelora.lora import (
    AttachSummary,
    StoredBase,
    attach,
    base_fingerprints,
    check_storage,
    collect,
    store_base,
    target_linears,
)
from reelora.train import Diffusion, WithText, begin_all_from, begin_from, collect_all

from .conditions import check_conditions
from .config import TrainConfig
from .model import denoiser_of, facts_of, find_model, text_roles_of

__all__ = ["Trained", "check_trained", "load_trained", "trained_roles"]

_HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Parts of a model with branches on those that are trained."""

    model: nn.Module
    """The denoiser, or it with its text encoders."""
    parts: Bundle
    summaries: tuple[AttachSummary, ...]
    """The denoiser's first."""
    bases: Mapping[str, str]
    """Fingerprints of the denoiser as it was."""
    stored: StoredBase | None = None
    """How its weights are kept, where this is not as they were loaded."""

    def begin_from(self, adapter: Adapter) -> None:
        """Go on with an adapter. Raises what `reelora.train.begin_from` raises."""
        specs = {summary.role: summary.spec for summary in self.summaries}
        if isinstance(self.model, WithText):
            begin_all_from(self.model, adapter, specs)
        else:
            begin_from(self.model, adapter, self.summaries[0].spec)

    def collect(self, *, provenance: Mapping[str, str]) -> Adapter:
        """What was learned, of all parts."""
        if isinstance(self.model, WithText):
            return collect_all(self.model, provenance=provenance)
        return collect(self.model, provenance=provenance)

    @property
    def num_parameters(self) -> int:
        """That are trained."""
        return sum(summary.trainable_parameters for summary in self.summaries)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Label and text of what is said of each part."""
        return [*(self.stored.rows() if self.stored else ()), *(row for summary in self.summaries for row in summary.rows())]


def trained_roles(config: TrainConfig) -> dict[str, LoraSpec]:
    """The roles that get branches, each with their shape. Raises ConfigError for text encoders that take no adapter."""
    roles = {denoiser_of(config.model): config.lora.spec()}
    if not config.text_encoder.rank:
        return roles
    if facts_of(config.model).model_class != "UNet2DConditionModel":
        raise ConfigError(
            f"text_encoder.rank is {config.text_encoder.rank}, but {config.model} is no Stable Diffusion: pipelines of other "
            "models load no adapter of a text encoder. Leave it at 0."
        )
    return roles | dict.fromkeys(text_roles_of(config.model)[1::2], config.text_encoder.spec())


def check_trained(config: TrainConfig) -> None:
    """Raise for everything about the model that can be known to be wrong before it is loaded."""
    roles = trained_roles(config)
    if config.loop.shard_base and config.text_encoder.rank:
        raise ConfigError("loop.shard_base splits a denoiser alone: leave it false, or text_encoder.rank at 0.")
    check_storage(config.base.storage)
    skeleton = load_components(find_model(config.model), roles=[*roles, "scheduler"])  # mapped: costs no memory
    for role, spec in roles.items():
        target_linears(getattr(skeleton, role), spec)
    check_conditions(getattr(skeleton, skeleton.denoiser), config)
    Diffusion.of(skeleton.scheduler)


def load_trained(config: TrainConfig, *, dtype: torch.dtype, device: torch.device) -> Trained:
    """Load what is trained and attach branches to it, drawn from the run's seed; on the host if it is to be split over devices.

    A base that is kept in another way is loaded there too, and never lies on the device as it was.
    """
    where = _HOST if config.loop.shard_base or config.base.is_special else device
    roles = trained_roles(config)
    parts = load_components(find_model(config.model), roles=[*roles, "scheduler"], dtype=dtype, device=where)
    denoiser, *encoders = (getattr(parts, role) for role in roles)
    bases, stored = base_fingerprints(denoiser), None
    if config.base.is_special:
        stored = store_base(denoiser, config.base.storage, stream=config.base.stream, device=device)
        for encoder in encoders:
            encoder.to(device)
    summaries = tuple(attach(getattr(parts, role), spec, seed=config.loop.seed) for role, spec in roles.items())
    model = WithText(denoiser, *encoders) if encoders else denoiser
    return Trained(model=model, parts=parts, summaries=summaries, bases=bases, stored=stored)
