"""How the stored tensors of one module become a pair: plain LoRA, LoHa and LoKr, each exactly.

The product of two low-rank matrices taken element by element (LoHa), or their Kronecker product (LoKr), is a low-rank matrix
again, and its factors are products of theirs. Source: LyCORIS, arXiv:2309.14859, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from einops import einsum
from torch import Tensor

from reelora.layouts import Slot

from .pair import FactorA, FactorB, Magnitude, pair_problem

__all__ = ["Form", "Shapes", "form_of", "magnitude_of", "magnitude_problem"]

Shapes = Mapping[Slot, tuple[int, ...]]
Tensors = Mapping[Slot, Tensor]
Factors = tuple[FactorA, FactorB, tuple[int, ...]]


@dataclass(frozen=True)
class Form:
    """One way to store an update."""

    name: str
    slots: frozenset[Slot]
    """All slots that belong to it."""
    problem: Callable[[Shapes], str]
    """What is wrong with the shapes; empty if nothing."""
    factors: Callable[[Tensors], Factors]
    """A, B and kernel."""
    dim: Callable[[Shapes], int | None]
    """What alpha is divided by; None where alpha has no meaning and the scale is 1."""


def form_of(slots: Mapping[Slot, object]) -> Form | None:
    """The form that the slots of a module are of; None if they are of no form, or of two."""
    held = set(slots) - _OF_ANY
    return next((form for form in _FORMS if held and held <= form.slots), None)


def magnitude_of(tensors: Tensors) -> Magnitude | None:
    """The norms of a DoRA, if the module is one (`magnitude_problem` has passed)."""
    if (values := tensors.get("magnitude")) is not None:
        return Magnitude(values.reshape(-1), "out", "PEFT")
    if (values := tensors.get("dora_scale")) is None:
        return None
    return Magnitude(values.reshape(-1), "out" if values.shape[0] > 1 or values.numel() == 1 else "in", "LyCORIS")


def magnitude_problem(shapes: Shapes, out_in: tuple[int, int]) -> str:
    """What is wrong with the shape of a DoRA's norms for a module of (out, in); empty if nothing."""
    if "magnitude" in shapes and prod(shapes["magnitude"]) != out_in[0]:
        return f"lora_magnitude_vector is {shapes['magnitude']}, not ({out_in[0]},)"
    if "dora_scale" in shapes:
        shape = shapes["dora_scale"]
        rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (0, 0)
        if (rows, columns) not in ((out_in[0], 1), (1, out_in[1])):
            return f"dora_scale is {shape}, neither one norm per row ({out_in[0]}, 1) nor one per column (1, {out_in[1]})"
    return ""


_OF_ANY: frozenset[Slot] = frozenset({"alpha", "rank", "magnitude", "dora_scale"})


def _lora_problem(shapes: Shapes) -> str:
    if lost := [slot for slot in ("A", "B") if slot not in shapes]:
        return f"lacks {' and '.join(lost)}"
    a, b = shapes["A"], shapes["B"]
    if len(a) < 2 or len(a) != len(b) or prod(b[2:]) != 1:
        return f"A is {a} and B {b}: both have to be matrices, A (rank, in) and B (out, rank)"
    if (mid := shapes.get("mid")) is None:
        return pair_problem((a[0], prod(a[1:])), (b[0], b[1]))
    if mid[:2] != (b[1], a[0]) or prod(a[2:]) != 1 or not all(mid):
        return f"the middle of a Tucker pair is {mid}, which does not fit between A {a} and B {b}"
    return ""


def _lora(tensors: Tensors) -> Factors:
    a, b = tensors["A"], tensors["B"].flatten(1)
    if (mid := tensors.get("mid")) is None:
        return a.flatten(1), b, tuple(a.shape[2:])
    a = einsum(mid.float().flatten(2), a.float().flatten(1), "p q k, q i -> p i k").flatten(1)
    return a, b.float(), tuple(mid.shape[2:])


_LOHA: tuple[tuple[Slot, Slot, Slot], ...] = (("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"))
"""Left factor, right factor and Tucker core of the two products."""


def _loha_problem(shapes: Shapes) -> str:
    needed: list[Slot] = [slot for a, b, _ in _LOHA for slot in (a, b)]
    if lost := [slot for slot in needed if slot not in shapes]:
        return f"lacks {', '.join(lost)}"
    if ("hada_t1" in shapes) != ("hada_t2" in shapes):
        return "has one of hada_t1 and hada_t2, not both"
    if odd := [f"{slot} is {shapes[slot]}, no matrix" for slot in needed if len(shapes[slot]) != 2 or not all(shapes[slot])]:
        return odd[0]
    first, second = (_loha_shape(shapes[a], shapes[b], shapes.get(t)) for a, b, t in _LOHA)
    return "" if first and first == second else "the two products of a LoHa do not have one shape"


def _loha_shape(a: tuple[int, ...], b: tuple[int, ...], t: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """(out, in, kernel) of one of the two products; None if its factors do not fit together."""
    if t is None:
        return (a[0], b[1]) if a[1] == b[0] else None
    return (a[1], b[1], *t[2:]) if t[:2] == (a[0], b[0]) else None


def _loha(tensors: Tensors) -> Factors:
    """``(B1 A1) * (B2 A2) = (B1 row-wise B2) (A1 column-wise A2)``, the Khatri-Rao products, of rank r1 r2."""
    (b1, a1), (b2, a2) = (_loha_product(tensors[a], tensors[b], tensors.get(t)) for a, b, t in _LOHA)
    kernel = tuple(tensors["hada_t1"].shape[2:]) if "hada_t1" in tensors else ()
    if len(a1) * len(a2) >= min(len(b1), a1.shape[1]):
        return _dense((b1 @ a1) * (b2 @ a2), kernel)
    b = einsum(b1, b2, "o r, o s -> o r s").flatten(1)
    return einsum(a1, a2, "r i, s i -> r s i").flatten(0, 1), b, kernel


def _loha_product(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
    if t is None:
        return a.float(), b.float()
    return a.float().mT, einsum(t.float().flatten(2), b.float(), "p q k, q i -> p i k").flatten(1)


def _dense(update: Tensor, kernel: tuple[int, ...]) -> Factors:
    """An update whose factors would hold more numbers than it has: itself, beside an identity."""
    rows, columns = update.shape
    if rows < columns:
        return update, torch.eye(rows), kernel
    return torch.eye(columns), update, kernel


def _lokr_problem(shapes: Shapes) -> str:
    for side in ("lokr_w1", "lokr_w2"):
        whole, halves = side in shapes, [f"{side}_{half}" in shapes for half in "ab"]
        if whole + all(halves) != 1 or whole + any(halves) != 1:
            return f"has to hold either {side} or both {side}_a and {side}_b"
    if "lokr_t2" in shapes and "lokr_w2" in shapes:
        return "has both lokr_w2 and lokr_t2"
    if not all(prod(shape) and len(shape) > 1 for slot, shape in shapes.items() if slot.startswith("lokr")):
        return "has a LoKr factor that is no matrix"
    return "" if _fit(shapes, "lokr_w1_a", "lokr_w1_b") and _fit_second(shapes) else "the factors of a LoKr do not fit together"


def _fit(shapes: Shapes, left: Slot, right: Slot) -> bool:
    return left not in shapes or shapes[left][1] == shapes[right][0]


def _fit_second(shapes: Shapes) -> bool:
    if (t := shapes.get("lokr_t2")) is None:
        return _fit(shapes, "lokr_w2_a", "lokr_w2_b")
    return t[:2] == (shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][0])


def _lokr(tensors: Tensors) -> Factors:
    """``(U1 V1) kron (U2 V2) = (U1 kron U2) (V1 kron V2)``, of rank r1 r2."""
    first, second = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    u1, v1 = _halves(first) if first is not None else (tensors["lokr_w1_a"].float(), tensors["lokr_w1_b"].float())
    kernel = tuple(second.shape[2:]) if second is not None else ()
    u2, v2 = _halves(second) if second is not None else (tensors["lokr_w2_a"].float(), tensors["lokr_w2_b"].float())
    if (t := tensors.get("lokr_t2")) is not None:
        u2, v2, kernel = u2.mT, einsum(t.float().flatten(2), v2, "p q k, q i -> p i k").flatten(1), tuple(t.shape[2:])
    return torch.kron(v1.contiguous(), v2.contiguous()), torch.kron(u1.contiguous(), u2.contiguous()), kernel


def _halves(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of a matrix that is stored whole: itself and an identity."""
    matrix = whole.float().flatten(1)
    rows, columns = matrix.shape
    return (torch.eye(rows), matrix) if rows <= columns else (matrix, torch.eye(columns))


def _lokr_dim(shapes: Shapes) -> int | None:
    halves = [shapes[slot][0] for slot in ("lokr_w1_b", "lokr_w2_b") if slot in shapes]
    return halves[-1] if halves else None


_FORMS = (
    Form("LoRA", frozenset({"A", "B", "mid"}), _lora_problem, _lora, lambda shapes: shapes["A"][0]),
    Form(
        "LoHa",
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
        _loha_problem,
        _loha,
        lambda shapes: shapes["hada_w1_b"][0],
    ),
    Form(
        "LoKr",
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
        _lokr_problem,
        _lokr,
        _lokr_dim,
    ),
)
