"""The LoRA that a SAT checkpoint carries: as an adapter, and attached to its base."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from reelora.adapters import Adapter, LoraSpec, Source, adapter_of, split_role
from reelora.errors import ComponentError, first_few
from reelora.lora import attach, load_into

from .architecture import SatLora, SatModel
from .checkpoint import SatCheckpoint

__all__ = ["attach_adapter", "read_lora"]

PROJECTIONS = 4
"""Query, key, value and output of every layer."""


def read_lora(checkpoint: SatCheckpoint, model: SatModel) -> Adapter | None:
    """The LoRA of a checkpoint at the scale that SAT gives it, ``lora_alpha / r`` of the YAML; None where there is none.

    Raises ComponentError where the YAML has no ``lora_config`` for it or layers are missing, AdapterError where it contradicts
    the YAML.
    """
    matrices = checkpoint.adapter()
    if not matrices:
        return None
    if model.lora is None:
        raise ComponentError(
            f"transformer: {checkpoint.path} holds a LoRA of {len(matrices)} matrices, but {model.where} has no lora_config. "
            "Add the YAML that it was trained with: without its r and lora_alpha nobody knows how strong it is."
        )
    adapter = _adapter(checkpoint.path, matrices, model.lora)
    _check_layers(adapter, checkpoint.path, model)
    return adapter


def attach_adapter(network: nn.Module, adapter: Adapter, lora: SatLora) -> None:
    """Let an adapter act on its base: frozen like the rest, and off again with `reelora.detach`."""
    paths = tuple(split_role(name)[1] for name in adapter.pairs)
    attach(network, LoraSpec(rank=lora.rank, alpha=lora.alpha, target_modules=paths))
    load_into(network, adapter)
    network.requires_grad_(False).eval()


def _adapter(path: Path, matrices: dict[str, Tensor], lora: SatLora) -> Adapter:
    source = Source(
        path=path,
        tensors=matrices,
        shapes={name: tuple(matrix.shape) for name, matrix in matrices.items()},
        dtypes={name: matrix.dtype for name, matrix in matrices.items()},
        sat_lora=(lora.alpha, lora.rank),
    )
    return replace(adapter_of(source), scale_source=str(lora))


def _check_layers(adapter: Adapter, path: Path, model: SatModel) -> None:
    """Raise unless every layer that has a LoRA by the YAML has all four pairs, and no other has one."""
    assert model.lora
    layers = range(model.transformer["num_layers"]) if model.lora.layers is None else model.lora.layers
    leaves = ("to_q", "to_k", "to_v", "to_out.0")
    wanted = {f"transformer.transformer_blocks.{layer}.attn1.{leaf}" for layer in layers for leaf in leaves}
    missing, surplus = sorted(wanted - set(adapter.pairs)), sorted(set(adapter.pairs) - wanted)
    problems = [
        f"{len(names)} {what}, {first_few(names)}"
        for what, names in (("are missing", missing), ("are of layers that the config has not", surplus))
        if names
    ]
    if problems:
        raise ComponentError(
            f"transformer: the LoRA of {path} does not fit the config at {model.where}, which has LoRAs of {len(wanted)} "
            f"projections: {'; '.join(problems)}. Config and checkpoint must be of one training."
        )
