"""SAT checkpoints for tests: as the original code wrote them, and others of the same shapes."""

import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from oracle import GOLDEN
from torch import Tensor

from reelora.components import Bundle, load_components, rotary_positions
from reelora.tensorio import open_checkpoint, open_tensors, write_checkpoint

__all__ = ["FORWARDS", "LORAS", "base_of", "deepspeed", "largest_error", "load_case", "positions", "recording", "yamls"]

LORAS = {"t2v_2b": "t2v_2b_lora", "t2v_5b": "t2v_5b_lora_a8"}
"""A case without LoRA and the one that has the same base."""
FORWARDS = GOLDEN / "forwards"


def yamls(case: str) -> list[Path]:
    """The configs of a case, in the order in which SAT takes them."""
    return [GOLDEN / case / "model.yaml", GOLDEN / case / "inference.yaml"]


def recording(case: str) -> Mapping[str, Tensor]:
    """Inputs and outputs of the original forward; a case with LoRA was recorded on the inputs of the one without."""
    base = next((base for base, lora in LORAS.items() if lora == case), case)
    return {**open_tensors(FORWARDS / f"{base}.safetensors"), **open_tensors(FORWARDS / f"{case}.safetensors")}


def base_of(case: str, folder: Path) -> Path:
    """The checkpoint of a case without LoRA: the same tensors without the LoRA's."""
    if case not in LORAS:
        return GOLDEN / case / "transformer"
    stored = open_checkpoint(GOLDEN / LORAS[case] / "transformer" / "1" / "mp_rank_00_model_states.pt").under("module")
    tensors = {re.sub(r"\.original\.", ".", name): stored[name] for name in stored if ".matrix_" not in name}
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    write_checkpoint(folder / "1" / "mp_rank_00_model_states.pt", {"module": tensors})
    return folder


def deepspeed(folder: Path) -> Path:
    """The checkpoint of a fine-tune with T5 and VAE inside; the values of the VAE are zeros."""
    packed = GOLDEN / "t2v_2b_finetune_lora" / "mp_rank_00_model_states.pt.xz"
    (folder / "2").mkdir(parents=True)
    (folder / "latest").write_text("2")
    (folder / "2" / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


def load_case(case: str, folder: Path) -> Bundle:
    """The transformer of a case as we load it."""
    path = GOLDEN / case / "transformer" if case in LORAS.values() else base_of(case, folder)
    return load_components(path, roles=["transformer"], sat_config=yamls(case))


def largest_error(model: Any, recorded: Mapping[str, Tensor], variant: str) -> float:
    """Of a transformer's output from the original's."""
    take = {name.partition(".")[2]: tensor for name, tensor in recorded.items() if name.startswith(f"{variant}.")}
    latents = torch.cat([take["latent"], *([take["concat_images"]] if "concat_images" in take else [])], dim=2)
    # The last bit of exp() differs between processors, and a timestep near 1000 makes it 1e-5: take SAT's own embedding.
    handle = model.time_embedding.register_forward_hook(lambda *_: take.get("time_emb"))
    try:
        with torch.no_grad():
            output = model(latents, take["context"], take["timesteps"], **positions(model, latents), return_dict=False)[0]
    finally:
        handle.remove()
    return float((output - take["output"]).abs().max())


def positions(model: Any, latents: Tensor) -> dict[str, Any]:
    """The rotary positions that a transformer takes, if it does."""
    if not model.config.use_rotary_positional_embeddings:
        return {}
    _, frames, _, height, width = latents.shape
    sizes = {"num_latent_frames": frames, "height": height, "width": width}
    return {"image_rotary_emb": rotary_positions(model.config, **sizes, device=latents.device)}
