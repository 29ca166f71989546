"""Files that nobody here made, DoRAs, and files that are refused.

What other programs wrote lies in ``tests/golden``, with its origin.
"""

import json
import lzma
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import (
    AB,
    ALPHA,
    DOWN_UP,
    FLAT,
    NAME,
    PATH,
    RANK,
    SAT_MODULE,
    SD,
    SLOT,
    WIDTH,
    Case,
    by_peft,
    by_sat,
    factors,
    keyed,
)
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["DORAS", "FINETUNED", "PUBLISHED", "REFUSALS", "Refusal"]

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file that is no adapter to trust."""

    name: str
    make: Callable[[Path], Path]
    why: str
    """What the error says, word for word."""


def golden(case: str, *parts: str) -> Callable[[Path], Path]:
    """A copy of what another program wrote."""

    def make(folder: Path) -> Path:
        source = GOLDEN.joinpath("sat", case, *parts)
        return Path((shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name))

    return make


def by_deepspeed(folder: Path) -> Path:
    """The checkpoint that a fine-tune with SAT left: optimizer, generators and two other networks lie beside the LoRA."""
    packed = GOLDEN / "sat" / FINETUNED / "mp_rank_00_model_states.pt.xz"
    (folder / "sat" / "2").mkdir(parents=True)
    (folder / "sat" / "latest").write_text("2")
    (folder / "sat" / "2" / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder / "sat"


def by_disney(folder: Path) -> Path:
    """lora_disney.safetensors as it was published, but for its values."""
    generator = torch.Generator().manual_seed(5)
    shapes = json.loads((GOLDEN / "cloneofsimo_shapes.json").read_text())
    tensors: dict[str, Tensor] = {f"<s{n}>": torch.randn(768, generator=generator) for n in (1, 2)}
    metadata = {"unet": '["GEGLU", "CrossAttention", "Attention"]', "text_encoder": '["CLIPAttention"]'}
    metadata |= dict.fromkeys(tensors, "<embed>")
    for role, pairs in shapes.items():
        for index, (out, inp) in enumerate(pairs):
            tensors[f"{role}:{index}:up"] = torch.randn(out, 1, generator=generator)
            tensors[f"{role}:{index}:down"] = torch.randn(1, inp, generator=generator)
            metadata[f"{role}:{index}:rank"] = "1"
    save_file(tensors, folder / "lora_disney.safetensors", metadata=metadata)
    return folder / "lora_disney.safetensors"


FINETUNED, FIRST = "t2v_2b_finetune_lora", "transformer.transformer_blocks.0.attn1.to_q"
PUBLISHED = (
    Case(name="lora_disney", layout="cloneofsimo", make=by_disney, scale=1.0, module=f"unet.{SD}.to_q"),
    *(
        Case(name=f"SAT, {case}", layout="sat", make=golden(case, "transformer"), scale=scale, module=FIRST, options=options)
        for case, alpha in (("t2v_2b_lora", 1), ("t2v_5b_lora_a8", 8))
        for scale, options in ((None, {}), (alpha / RANK, {"sat_config": GOLDEN / "sat" / case / "model.yaml"}))
    ),
    *(
        Case(name=f"SAT, {FINETUNED}", layout="sat", make=by_deepspeed, scale=scale, module=FIRST, options=options)
        for scale, options in ((None, {}), (1 / RANK, {"sat_config": GOLDEN / "sat" / FINETUNED / "model.yaml"}))
    ),
    *(
        Case(
            name=f"CogVideo's export of {case}",
            layout="diffusers",
            make=golden(case, "exported_lora"),
            scale=None,
            module=FIRST,
        )
        for case in ("t2v_2b_lora", "t2v_5b_lora_a8", FINETUNED)
    ),
)
"""Files that nobody here made: as other programs wrote them, or with their names and shapes and other values."""

NORMS = torch.rand(WIDTH, generator=torch.Generator().manual_seed(6))
DORAS = (
    Case(name="PEFT, DoRA", layout="peft", make=by_peft(alpha=2, use_dora=True), scale=0.5),
    Case(
        name="LyCORIS, DoRA over columns", layout="kohya", scale=0.5,
        make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, ALPHA | {"dora_scale": NORMS[None]}),
    ),
    Case(
        name="LyCORIS, DoRA over rows", layout="kohya", scale=0.5,
        make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, ALPHA | {"dora_scale": NORMS[:, None]}),
    ),
)  # fmt: skip
"""Kept with the kind of DoRA that they are, and never used as what they are not."""


def two_shards(folder: Path) -> Path:
    shard = by_sat(folder) / "500" / "mp_rank_00_model_states.pt"
    shutil.copy(shard, shard.with_name("mp_rank_01_model_states.pt"))
    return folder / "sat"


def sat_base(folder: Path) -> Path:
    torch.save({"module": {f"{SAT_MODULE}.weight": WHOLE}}, folder / "mp_rank_00_model_states.pt")
    return folder / "mp_rank_00_model_states.pt"


def settings(**fields: object) -> Mapping[str, object]:
    return {
        "lora_adapter_metadata": {f"transformer.{key}": value for key, value in {"r": RANK, "lora_alpha": 2, **fields}.items()}
    }


DIFFUSERS, KOHYA = f"{NAME}.{{}}", f"lora_unet_{FLAT}.{{}}"
WHOLE = torch.zeros(WIDTH, WIDTH)
REFUSALS = (
    Refusal(
        name="a full difference of one layer", make=keyed(KOHYA, *DOWN_UP, {"diff": WHOLE}), why="a full difference of weights"
    ),
    Refusal(name="GLoRA", make=keyed(KOHYA, "a1.weight", "a2.weight"), why="tensors are no LoRA but GLoRA"),
    Refusal(name="OFT", make=keyed(KOHYA, "oft_blocks", "oft_diag"), why="OFT, a rotation of the base"),
    Refusal(name="a bias beside B", make=keyed(DIFFUSERS, *AB, {"lora_B.bias": NORMS}), why="a bias beside B"),
    Refusal(
        name="a strange name among others", make=keyed(DIFFUSERS, *AB, {"scaler": NORMS}), why="names that this layout has not"
    ),
    Refusal(name="half a pair", make=keyed(DIFFUSERS, "lora_A.weight", "alpha"), why="pairs lack their other half"),
    Refusal(
        name="two adapters in one file", why="it mixes 2 adapter slots",
        make=keyed(f"{PATH}.{{}}", *SLOT, {"lora_A.style.weight": factors()[0], "lora_B.style.weight": factors()[1]}),
    ),
    Refusal(
        name="two alphas", why="disagree about the scale of 1 pairs",
        make=keyed(KOHYA, *DOWN_UP, ALPHA, {"ss_network_alpha": "1", "ss_network_dim": "4"}),
    ),
    Refusal(
        name="another rank than its settings", make=keyed(DIFFUSERS, *AB, metadata=settings(r=8)), why="pairs have another rank"
    ),
    Refusal(
        name="a DoRA that has lost its norms", make=keyed(DIFFUSERS, *AB, metadata=settings(use_dora=True)),
        why="have no norms of a DoRA",
    ),
    Refusal(
        name="PiSSA", make=keyed(DIFFUSERS, *AB, metadata=settings(init_lora_weights="pissa")),
        why="also changed the base's weights",
    ),
    Refusal(name="a SAT LoRA in two model-parallel shards", make=two_shards, why="is split into 2 model-parallel shards"),
    Refusal(name="a SAT base without LoRA", make=sat_base, why="it has no pair at all"),
)  # fmt: skip
"""Files that would load wrong or only in part."""
