"""Arithmetic on adapters, beside PEFT's add_weighted_adapter and the full decompositions of kohya, mergekit and FastVideo."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from reelora.adapters import Adapter, LoraSpec, Pair
from reelora.adapters.algebra import extract, merge, resize, singular_values

from .side_by_side import Row, seconds_of_both

__all__ = ["run"]

WIDTH, RANK, NUM_LAYERS = 3072, 128, 42
"""CogVideoX-5B, at the rank that its trainers use."""
SPEC = LoraSpec(rank=RANK, alpha=64)
WEIGHTS = [0.7, 0.5]


def run() -> Iterator[Row]:
    """Attention adapters of CogVideoX-5B: 3072 x 3072, rank 128, float32."""
    one, two = _adapter(0, num_layers=1), _adapter(1, num_layers=1)
    pair = next(iter(one.pairs.values()))
    full = seconds_of_both(
        "singular values of one module (theirs: full SVD)",
        lambda: singular_values(pair),
        lambda: torch.linalg.svd(pair.b @ pair.a),
        repeats=1,
    )
    yield full
    yield _accuracy(pair)
    yield from _merges(one, two)
    yield from _extraction(pair)
    whole = _adapter(2, num_layers=NUM_LAYERS)
    ours = seconds_of_both(
        f"resize {len(whole.pairs)} modules to 64 (theirs: full SVD of one, times {len(whole.pairs)})",
        lambda: resize(whole, rank=64),
        lambda: None,
        repeats=1,
    )
    yield Row(what=ours.what, unit="s", ours=ours.ours, theirs=full.theirs * len(whole.pairs))


def _adapter(seed: int, *, num_layers: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    names = [f"transformer.transformer_blocks.{n}.attn1.{part}" for n in range(num_layers) for part in SPEC.target_modules]
    pairs = {
        name: Pair(
            torch.randn(RANK, WIDTH, generator=draw) / WIDTH**0.5,
            torch.randn(WIDTH, RANK, generator=draw) * 0.01,
            SPEC.scale,
        )
        for name in names
    }
    return Adapter(pairs=pairs, spec=SPEC, layout="memory", scale_source="a benchmark")


def _accuracy(pair: Pair) -> Row:
    """The largest relative error of any singular value; the truth is the decomposition in float64."""
    true = torch.linalg.svdvals(_update([(pair, 1.0)]))[:RANK]
    ours, theirs = singular_values(pair), torch.linalg.svdvals(_update([(pair, 1.0)]).float())[:RANK].double()
    errors = [float(((found - true) / true).abs().max()) for found in (ours, theirs)]
    return Row(what="singular values: largest relative error", unit="", ours=errors[0], theirs=errors[1])


def _extraction(pair: Pair) -> Iterator[Row]:
    """One module of a fine-tune whose update is of rank 128 and noise: time, and what is lost at half of that rank."""
    draw = torch.Generator().manual_seed(3)
    change = (pair.b @ pair.a).add_(torch.randn(WIDTH, WIDTH, generator=draw), alpha=1e-4)
    base = {"to_q.weight": torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5}
    tuned = {name: weight + change for name, weight in base.items()}

    def theirs() -> Tensor:
        left, values, right = torch.linalg.svd(tuned["to_q.weight"] - base["to_q.weight"], full_matrices=False)
        return (left[:, : RANK // 2] * values[: RANK // 2]) @ right[: RANK // 2]

    def ours() -> Tensor:
        found = extract(base, tuned, rank=RANK // 2).pairs["transformer.to_q"]
        return found.b @ found.a

    true = (tuned["to_q.weight"] - base["to_q.weight"]).double()
    what = f"extract rank {RANK // 2} from one module (theirs: full SVD)"
    yield Row(what=f"{what}: share lost", unit="", ours=_error(true, ours().double()), theirs=_error(true, theirs().double()))
    yield seconds_of_both(what, ours, theirs, repeats=1)


def _merges(one: Adapter, two: Adapter) -> Iterator[Row]:
    """One module of two adapters: time of the exact sums, error of the quick ones."""
    name = next(iter(one.pairs))
    first, second = (Adapter(pairs={name: a.pairs[name]}, spec=SPEC, layout="memory", scale_source="") for a in (one, two))
    model = _peft_model([first.pairs[name], second.pairs[name]])
    parts = list(zip([first, second], WEIGHTS, strict=True))

    def theirs(combination: str, **settings: int) -> Tensor:
        model.add_weighted_adapter(["a0", "a1"], WEIGHTS, "merged", combination, **settings)
        update = model.model.to_q.get_delta_weight("merged")
        model.delete_adapter("merged")
        return update.detach().double()

    true = _update([(adapter.pairs[name], weight) for adapter, weight in parts])
    ours = _error(true, _update([(merge(parts).pairs[name], 1.0)]))
    for combination in ("linear", "cat"):
        what = f"merge: relative error (theirs: {combination})"
        yield Row(what=what, unit="", ours=ours, theirs=_error(true, theirs(combination)))
    yield seconds_of_both(
        f"merge to rank {RANK}, one module (theirs: svd)",
        lambda: merge(parts, rank=RANK),
        lambda: theirs("svd", svd_rank=RANK),
        repeats=1,
    )


def _peft_model(pairs: list[Pair]) -> Any:
    net = nn.Module()
    net.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
    model: Any = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=64, target_modules=["to_q"]), adapter_name="a0")
    model.add_adapter("a1", LoraConfig(r=RANK, lora_alpha=64, target_modules=["to_q"]))
    layer = model.base_model.model.to_q
    for place, pair in enumerate(pairs):
        layer.lora_A[f"a{place}"].weight.data.copy_(pair.a)
        layer.lora_B[f"a{place}"].weight.data.copy_(pair.b)
    return model.base_model


def _update(terms: list[tuple[Pair, float]]) -> Tensor:
    """The dense sum of pairs, in float64."""
    return sum(
        ((pair.scale or 0) * strength * (pair.b.double() @ pair.a.double()) for pair, strength in terms), torch.zeros(())
    )


def _error(true: Tensor, found: Tensor) -> float:
    return float((true - found).norm() / true.norm())
