"""One small file per dialect, with the update that its producer means.

Files of diffusers and PEFT are made by running them; the others by their key tables. ``delta`` of a case is what the producer
adds to the weight of `NAME` at strength 1, computed here in the way that producer computes it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_models import build_transformer
from torch import Tensor

__all__ = ["CASES", "NAME", "Case"]

PATH = "transformer_blocks.1.attn1.to_out.0"
NAME = f"transformer.{PATH}"
FLAT = PATH.replace(".", "_")
SAT_MODULE = "model.diffusion_model.transformer.layers.1.attention.dense"
SD = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
WIDTH, RANK = 32, 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One dialect, how to make a file of it, and what reading it must give."""

    name: str
    layout: str
    make: Callable[[Path], Path]
    scale: float | None
    """None: nothing says it, and reading has to leave it unknown."""
    module: str = NAME
    delta: Callable[[], Tensor] | None = None
    """Where it is not ``scale * B @ A`` of `factors`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What is said beside the file when it is read."""


def factors() -> tuple[Tensor, Tensor]:
    """A and B that every case stores, each in its own way."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(RANK, WIDTH, generator=generator), torch.randn(WIDTH, RANK, generator=generator)


def keyed(
    template: str, down: str, up: str, extra: Mapping[str, Tensor] | None = None, metadata: Mapping[str, object] | None = None
):
    """A maker of a file with A and B under ``template`` and further tensors beside them."""

    def make(folder: Path) -> Path:
        a, b = factors()
        tensors = {template.format(down): a, template.format(up): b}
        tensors |= {template.format(name): tensor for name, tensor in (extra or {}).items()}
        header = {key: text if isinstance(text, str) else json.dumps(text) for key, text in (metadata or {}).items()}
        save_file(tensors, folder / "adapter.safetensors", metadata={"format": "pt", **header})
        return folder / "adapter.safetensors"

    return make


def _fill(model: Any) -> None:
    """Put A and B into the layer that PEFT made of `PATH`."""
    layer = model.get_submodule(PATH)
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = factors()


def by_peft(alpha: int, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=[PATH], **options)
        model: Any = get_peft_model(build_transformer(), config)
        _fill(model.base_model.model)
        model.save_pretrained(str(folder / "peft"))
        return folder / "peft"

    return make


def by_peft_product(config: Any, parts: Callable[[], dict[str, Tensor]]) -> Callable[[Path], Path]:
    """PEFT's own LoHa and LoKr, under LyCORIS' names; its config calls alpha ``alpha``."""

    def make(folder: Path) -> Path:
        model: Any = get_peft_model(build_transformer(), config)
        layer = model.base_model.model.get_submodule(PATH)
        for name, tensor in parts().items():
            getattr(layer, name)["default"].data = tensor
        model.save_pretrained(str(folder / "peft"))
        return folder / "peft"

    return make


def by_diffusers_model(folder: Path) -> Path:
    """``save_lora_adapter``: no role in front of the names, nor of the settings."""
    model = build_transformer()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=2, target_modules=[PATH]))
    _fill(model)
    model.save_lora_adapter(str(folder / "bare"))
    return folder / "bare"


def by_diffusers_pipeline(folder: Path) -> Path:
    """``save_lora_weights`` with the settings, as diffusers' newer trainers call it."""
    a, b = factors()
    layers: dict[str, Any] = {f"{PATH}.lora_A.weight": a, f"{PATH}.lora_B.weight": b}
    settings = LoraConfig(r=RANK, lora_alpha=2, target_modules=[PATH]).to_dict() | {"target_modules": [PATH]}
    CogVideoXPipeline.save_lora_weights(str(folder / "pipe"), layers, transformer_lora_adapter_metadata=settings)
    return folder / "pipe"


def by_sat(folder: Path) -> Path:
    a, b = factors()
    extra = {
        f"{SAT_MODULE}.original.weight": torch.zeros(WIDTH, WIDTH),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(1),
    }
    module = {f"{SAT_MODULE}.matrix_A.0": a, f"{SAT_MODULE}.matrix_B.0": b, **extra}
    path = folder / "sat" / "500" / "mp_rank_00_model_states.pt"
    path.parent.mkdir(parents=True)
    torch.save({"module": module, "iteration": 500}, path)
    (folder / "sat" / "latest").write_text("500")
    return folder / "sat"


def by_cloneofsimo(folder: Path) -> Path:
    a, b = factors()
    tensors = {"unet:3:down": a, "unet:3:up": b, "<s1>": torch.ones(8)}
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "unet:3:rank": str(RANK), "<s1>": "<embed>"}
    save_file(tensors, folder / "adapter.safetensors", metadata=metadata)
    return folder / "adapter.safetensors"


def by_cloneofsimo_list(folder: Path) -> Path:
    a, b = factors()
    torch.save([b, a] * 48, folder / "lora.text_encoder.pt")
    return folder / "lora.text_encoder.pt"


def loha() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = {"hada_w1_a": (WIDTH, 2), "hada_w1_b": (2, WIDTH), "hada_w2_a": (WIDTH, 2), "hada_w2_b": (2, WIDTH)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def loha_delta() -> Tensor:
    w = loha()
    return (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"]) * (3 / 2)


def lokr() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def whole_lokr() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(10)
    return {name: torch.randn(side, side, generator=generator) for name, side in (("lokr_w1", 4), ("lokr_w2", 8))}


def whole_lokr_delta() -> Tensor:
    """PEFT multiplies by alpha / r here too, LyCORIS does not."""
    return torch.kron(whole_lokr()["lokr_w1"], whole_lokr()["lokr_w2"]) * (3 / 8)


def lokr_delta() -> Tensor:
    w = lokr()
    return torch.kron(w["lokr_w1"], w["lokr_w2_a"] @ w["lokr_w2_b"]) * (3 / 2)


def tensors(template: str, parts: Callable[[], dict[str, Tensor]], alpha: float):
    def make(folder: Path) -> Path:
        named = {template.format(name): tensor for name, tensor in parts().items()}
        save_file({**named, template.format("alpha"): torch.tensor(alpha)}, folder / "adapter.safetensors")
        return folder / "adapter.safetensors"

    return make


AB = ("lora_A.weight", "lora_B.weight")
DOWN_UP = ("lora_down.weight", "lora_up.weight")
SLOT = ("lora_A.default.weight", "lora_B.default.weight")
ALPHA, NO_ALPHA = {"alpha": torch.tensor(2.0)}, {"alpha": torch.tensor(0.0)}
CASES = (
    Case(name="diffusers, pipeline", layout="diffusers", make=by_diffusers_pipeline, scale=0.5),
    Case(name="diffusers, model", layout="bare", make=by_diffusers_model, scale=0.5),
    Case(name="diffusers, silent", layout="diffusers", make=keyed(f"{NAME}.{{}}", *AB), scale=None),
    Case(
        name="finetrainers", layout="diffusers", scale=0.5,
        make=keyed(f"{NAME}.{{}}", *AB, metadata={"lora_config": {"r": RANK, "lora_alpha": 2, "target_modules": "to_out.0"}}),
    ),
    Case(name="CogKit", layout="bare", make=keyed(f"{PATH}.{{}}", *AB), scale=None),
    Case(name="Mochi", layout="bare", make=keyed(f"{PATH}.{{}}", "lora_A", "lora_B"), scale=None),
    Case(name="PEFT", layout="peft", make=by_peft(alpha=2), scale=0.5),
    Case(name="PEFT, rsLoRA", layout="peft", make=by_peft(alpha=3, use_rslora=True), scale=1.5),
    Case(name="PEFT, patterns", layout="peft", make=by_peft(alpha=9, alpha_pattern={PATH: 1}), scale=0.25),
    Case(
        name="PEFT, LoHa", layout="peft", scale=1.5, delta=loha_delta,
        make=by_peft_product(LoHaConfig(r=2, alpha=3, target_modules=[PATH]), loha),
    ),
    Case(
        name="PEFT, LoKr", layout="peft", scale=1.5, delta=lokr_delta,
        make=by_peft_product(LoKrConfig(r=2, alpha=3, target_modules=[PATH]), lokr),
    ),
    Case(
        name="PEFT, LoKr of two whole factors", layout="peft", scale=3 / 8, delta=whole_lokr_delta,
        make=by_peft_product(LoKrConfig(r=8, alpha=3, target_modules=[PATH]), whole_lokr),
    ),
    Case(name="PEFT, slot", layout="peft-slot", make=keyed(f"{PATH}.{{}}", *SLOT), scale=None),
    Case(name="kohya", layout="kohya", make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, ALPHA), scale=0.5),
    Case(name="kohya without alpha", layout="kohya", make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP), scale=1.0),
    Case(name="kohya, alpha 0", layout="kohya", make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, NO_ALPHA), scale=1.0),
    Case(
        name="kohya, header only", layout="kohya", scale=0.25,
        make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, metadata={"ss_network_alpha": "1", "ss_network_dim": "4"}),
    ),
    Case(
        name="kohya, resized", layout="kohya", scale=0.3,
        make=keyed(f"lora_unet_{FLAT}.{{}}", *DOWN_UP, {"alpha": torch.tensor(1.2, dtype=torch.float64)},
                   {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}),
    ),
    Case(
        name="kohya, SD", layout="kohya", module=f"unet.{SD}.to_q", scale=0.5,
        make=keyed(f"lora_unet_{SD.replace('.', '_')}_to_q.{{}}", *DOWN_UP, ALPHA),
    ),
    Case(name="VideoX-Fun", layout="fun", make=keyed(f"lora_unet__{FLAT}.{{}}", *DOWN_UP, ALPHA), scale=0.5),
    Case(name="VideoX-Fun, for ComfyUI", layout="comfyui", make=keyed(f"diffusion_model.{PATH}.{{}}", *AB), scale=None),
    Case(name="ai-toolkit", layout="comfyui", make=keyed(f"diffusion_model.{PATH}.{{}}", *DOWN_UP, ALPHA), scale=0.5),
    Case(
        name="ComfyUI, SD", layout="comfyui", module=f"unet.{SD}.to_q", scale=0.5,
        make=keyed("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.{}", *DOWN_UP, ALPHA),
    ),
    Case(name="OneTrainer", layout="onetrainer", make=keyed(f"lora_transformer_{FLAT}.{{}}", *DOWN_UP, ALPHA), scale=0.5),
    Case(name="SimpleTuner", layout="onetrainer", make=keyed(f"lycoris_{FLAT}.{{}}", *DOWN_UP, ALPHA), scale=0.5),
    Case(
        name="FastVideo", layout="fastvideo", scale=0.5,
        make=keyed(f"{PATH}.{{}}", *AB, {"lora_rank": torch.tensor([4], dtype=torch.int32), "lora_alpha": torch.tensor([2.0])}),
    ),
    Case(name="SAT", layout="sat", make=by_sat, scale=None),
    Case(name="cloneofsimo", layout="cloneofsimo", make=by_cloneofsimo, module=f"unet.{SD}.to_out.0", scale=1.0),
    Case(
        name="cloneofsimo, list", layout="cloneofsimo-list", make=by_cloneofsimo_list,
        module="text_encoder.text_model.encoder.layers.0.self_attn.k_proj", scale=1.0,
    ),
    Case(
        name="diffusers, processors", layout="diffusers-processor", module=f"unet.{SD}.to_out.0", scale=1.0,
        make=keyed(f"unet.{SD}.processor.to_out_lora.{{}}", "down.weight", "up.weight"),
    ),
    Case(
        name="diffusers, .lora.down", layout="diffusers-old", module=f"unet.{SD}.to_q", scale=1.0,
        make=keyed(f"{SD}.to_q.{{}}", "lora.down.weight", "lora.up.weight", metadata={}),
    ),
    Case(
        name="LoHa", layout="kohya", make=tensors(f"lora_unet_{FLAT}.{{}}", loha, 3.0), scale=1.5, delta=loha_delta,
    ),
    Case(
        name="LoKr", layout="onetrainer", make=tensors(f"lycoris_{FLAT}.{{}}", lokr, 3.0), scale=1.5, delta=lokr_delta,
    ),
)  # fmt: skip
"""Every dialect that the reader knows."""
