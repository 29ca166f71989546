"""What two processes find out about a model whose base they have split; each writes its findings into a folder."""

import gc
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small_run import make_config, make_lesson, make_transformer
from tiny_models import build_unet

from reelora.adapters import LoraSpec
from reelora.data import CachedClips
from reelora.errors import MismatchError
from reelora.lora import Shadows, attach, detach, held_base_bytes, shard_base, sharded_base_bytes
from reelora.train import Team, train
from reelora.train.predict import predictor_of
from reelora.train.recompute import Kept, Recomputing

__all__ = ["examine", "train_and_tell"]

CPU = torch.device("cpu")


def examine(folder: str, kind: str, dtype: str) -> None:
    """Compare a model whose base is split with one that is whole, in all ways of keeping activations."""
    torch.set_num_threads(1)
    with Team.joined(CPU) as team:
        found = _findings(_KINDS[kind], getattr(torch, dtype), team)
        (Path(folder) / f"{team.rank}.json").write_text(json.dumps(found))


def train_and_tell(cache: str, folder: str, *overrides: str) -> None:
    """One start of a run, and how much of the base every process held at its end, as a share."""
    torch.set_num_threads(1)
    lesson = make_lesson(CachedClips(Path(cache)))
    before = held_base_bytes(lesson.model)
    with Team.joined(CPU) as team:
        train(lesson, make_config(*overrides), Path(folder), team=team)
        (Path(folder) / f"held-{team.rank}.json").write_text(json.dumps(held_base_bytes(lesson.model) / before))


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A model, what it is told, and the ways in which its blocks can run."""

    make: Callable[[], Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    ways: Sequence[Kept]


def _findings(kind: _Kind, dtype: torch.dtype, team: Team) -> dict[str, Any]:
    whole, split = _branched(kind.make, dtype), _branched(kind.make, dtype)
    predict, predict_split = predictor_of(whole), predictor_of(split)
    shadows, names = Shadows(split), [name for name, _ in split.named_parameters()]
    found: dict[str, Any] = {"base_bytes": held_base_bytes(split), "expected_bytes": sharded_base_bytes(split, team.size)}
    originals = [
        weakref.ref(p) for block in split.modules() if _is_block(block) for p in block.parameters() if not p.requires_grad
    ]
    shard_base(split, CPU)
    gc.collect()
    found["held_bytes"] = held_base_bytes(split)
    found["alive"] = sum(original() is not None for original in originals)
    found["has_same_names"] = names == [name for name, _ in split.named_parameters()]
    told = kind.inputs(whole)
    for way in kind.ways:
        with Shadows(whole).cast():
            wanted = _step(whole, way, predict, told)
        same = []
        for _ in range(2):  # with an evaluation between two steps, as in a run
            with shadows.cast():
                got = _step(split, way, predict_split, told)
            same += [torch.equal(wanted[name], got[name]) for name in wanted]
            with torch.no_grad():
                same.append(torch.equal(predict(*told), predict_split(*told)))
        found[way] = same
        found["smallest gradient"] = min(float(tensor.abs().max()) for tensor in wanted.values())
    try:
        detach(split)
    except MismatchError as error:
        found["refusal"] = str(error)
    return found


def _is_block(module: Any) -> bool:
    return type(module).__name__ in ("CogVideoXBlock", "BasicTransformerBlock")


def _branched(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    model = make().to(dtype).requires_grad_(False)
    attach(model, LoraSpec(rank=4, alpha=4), seed=3)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(generator=generator)
    return model.train()


def _step(model: Any, way: Kept, predict: Any, told: tuple[Any, ...]) -> Mapping[str, torch.Tensor]:
    """The loss and the gradients of one pass."""
    model.enable_gradient_checkpointing(Recomputing({}, otherwise=way))
    model.zero_grad()
    loss = predict(*told).square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.requires_grad}}


def _of_cogvideox(model: Any) -> tuple[Any, ...]:
    generator, config = torch.Generator().manual_seed(5), model.config
    states = torch.randn(2, config.max_text_seq_length, config.text_embed_dim, generator=generator)
    return torch.randn(2, 3, 3, 4, 4, generator=generator), states, torch.tensor([5, 700])


def _of_unet(model: Any) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(2, 8, model.config.cross_attention_dim, generator=generator)
    return torch.randn(2, 1, model.config.in_channels, 8, 8, generator=generator), states, torch.tensor([5, 700])


def _unet() -> Any:
    torch.manual_seed(0)
    return build_unet()


_KINDS: Mapping[str, _Kind] = {
    "CogVideoX": _Kind(
        make=partial(make_transformer, num_layers=5),
        inputs=_of_cogvideox,
        ways=("everything", "products", "attention", "inputs"),
    ),
    "UNet": _Kind(make=_unet, inputs=_of_unet, ways=("everything", "inputs")),
}
