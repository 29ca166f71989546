"""How the stored tensors of one module become a pair: plain LoRA, LoHa and LoKr, each exactly.

The product of two low-rank matrices taken element by element (LoHa), or their Kronecker product (LoKr), is a low-rank matrix
again, and its factors are products of theirs. Source: LyCORIS, arXiv:2309.14859, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from reelora.layouts import Slot

from .pair import Magnitude, Product, pair_problem, widened

__all__ = ["Form", "Shapes", "form_of", "magnitude_of", "magnitude_problem"]

Shapes = Mapping[Slot, tuple[int, ...]]
Tensors = Mapping[Slot, Tensor]
Make = Callable[[], Tensor]

MAX_NUMBERS = 2**29
"""Of an update, or of its A and B (2 GiB): the largest models have layers of half that, and a file may claim anything."""


class Factors(NamedTuple):
    """A, B and the kernel of one module; what is no tensor of the file is not worked out yet."""

    a: Tensor | Product
    b: Tensor | Product
    kernel: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """One way to store an update."""

    name: str
    slots: frozenset[Slot]
    """All slots that belong to it."""
    problem: Callable[[Shapes], str]
    """What is wrong with the shapes; empty if nothing."""
    factors: Callable[[Tensors], Factors]
    dim: Callable[[Shapes], int | None]
    """What alpha is divided by; None where alpha has no meaning and the scale is 1."""


def form_of(slots: Mapping[Slot, object]) -> Form | None:
    """The form that the slots of a module are of; None if they are of no form, or of two."""
    held = slots.keys() - _OF_ANY
    return next((form for form in _FORMS if held and held <= form.slots), None)


def magnitude_of(tensors: Tensors) -> Magnitude | None:
    """The norms of a DoRA, if the module is one (`magnitude_problem` has passed)."""
    if (values := tensors.get("magnitude")) is not None:
        return Magnitude(widened(values.reshape(-1)), "out", "PEFT")
    if (values := tensors.get("dora_scale")) is None:
        return None
    axis = "out" if values.shape[0] > 1 or values.numel() == 1 else "in"
    return Magnitude(widened(values.reshape(-1)), axis, "LyCORIS")


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


@dataclass(frozen=True)
class _Low:
    """A matrix ``left @ right`` (rows, rank) and (rank, columns), both worked out when they are asked for."""

    rows: int
    rank: int
    columns: int
    left: Make
    right: Make

    def whole(self) -> Tensor:
        return self.left() @ self.right()

    def cut(self) -> "_Low":
        """The same matrix, of no higher rank than it has rows or columns."""
        is_too_high = self.rank > min(self.rows, self.columns)
        return _beside_identity(self.rows, self.columns, self.whole) if is_too_high else self


def _beside_identity(rows: int, columns: int, whole: Make) -> _Low:
    """A matrix that is there as a whole, and an identity."""
    if rows <= columns:
        return _Low(rows, rows, columns, lambda: torch.eye(rows), whole)
    return _Low(rows, columns, columns, whole, lambda: torch.eye(columns))


def _factors_of(low: _Low, kind: str, stored: Tensor, kernel: tuple[int, ...]) -> Factors:
    a = Product(kind=kind, shape=(low.rank, low.columns), dtype=stored.dtype, make=low.right)
    b = Product(kind=kind, shape=(low.rows, low.rank), dtype=stored.dtype, make=low.left)
    return Factors(a, b, kernel)


def _size_problem(factors: Callable[[Tensors], Factors], shapes: Shapes) -> str:
    """Why nobody should multiply the factors out; empty if nothing."""
    a, b, _ = factors({slot: torch.empty(shape, device="meta") for slot, shape in shapes.items()})
    (rank, inp), out = a.shape, b.shape[0]
    if max(out * inp, rank * (out + inp)) > MAX_NUMBERS:
        return f"would be {out:,} x {inp:,} of rank {rank:,}, more numbers than any layer of a model has"
    return ""


def _through(core: Tensor, right: Tensor) -> Tensor:
    """A Tucker core ``(p, q, kernel)`` times its right factor ``(q, in)``: a matrix ``(p, in * kernel)``."""
    return einsum(core.float().reshape(*core.shape[:2], -1), right.float(), "p q k, q i -> p i k").flatten(1)


def _lora_problem(shapes: Shapes) -> str:
    if lost := [slot for slot in ("A", "B") if slot not in shapes]:
        return f"lacks {' and '.join(lost)}"
    a, b = shapes["A"], shapes["B"]
    if len(a) < 2 or len(a) != len(b) or prod(b[2:]) != 1:
        return f"A is {a} and B {b}: both have to be matrices, A (rank, in) and B (out, rank)"
    if (mid := shapes.get("mid")) is None:
        return pair_problem((a[0], prod(a[1:])), (b[0], b[1]))
    if mid[:2] != (b[1], a[0]) or prod(a[2:]) != 1 or not all((*mid, *a, *b)):
        return f"the middle of a Tucker pair is {mid}, which does not fit between A {a} and B {b}"
    return _size_problem(_lora, shapes)


def _lora(tensors: Tensors) -> Factors:
    a, b = tensors["A"], tensors["B"].flatten(1)
    if (mid := tensors.get("mid")) is None:
        return Factors(a.flatten(1), b, tuple(a.shape[2:]))
    kernel = tuple(mid.shape[2:])
    shape = (b.shape[1], a.shape[1] * prod(kernel))
    through = Product(kind="LoRA with a Tucker core", shape=shape, dtype=mid.dtype, make=lambda: _through(mid, a.flatten(1)))
    return Factors(through, b, kernel)


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
    if not first or first != second or not all(first):
        return "the two products of a LoHa do not have one shape"
    return _size_problem(_loha, shapes)


def _loha_shape(a: tuple[int, ...], b: tuple[int, ...], t: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """(out, in, kernel) of one of the two products; None if its factors do not fit together."""
    if t is None:
        return (a[0], b[1]) if a[1] == b[0] else None
    return (a[1], b[1], *t[2:]) if t[:2] == (a[0], b[0]) else None


def _loha(tensors: Tensors) -> Factors:
    """``(B1 A1) * (B2 A2) = (B1 row-wise B2) (A1 column-wise A2)``, the Khatri-Rao products, of rank r1 r2."""
    one, two = (_low_rank(tensors[a], tensors[b], tensors.get(t)) for a, b, t in _LOHA)
    both = _Low(
        one.rows,
        one.rank * two.rank,
        one.columns,
        lambda: einsum(one.left(), two.left(), "o r, o s -> o r s").flatten(1),
        lambda: einsum(one.right(), two.right(), "r i, s i -> r s i").flatten(0, 1),
    )
    if both.rank >= min(both.rows, both.columns):
        both = _beside_identity(one.rows, one.columns, lambda: one.whole() * two.whole())
    core = tensors.get("hada_t1")
    return _factors_of(both, "LoHa", tensors["hada_w1_a"], () if core is None else tuple(core.shape[2:]))


def _low_rank(a: Tensor, b: Tensor, core: Tensor | None) -> _Low:
    """``a @ b``, or with a Tucker core ``a^T (core b)``, which is how LyCORIS stores both."""
    if core is None:
        return _Low(a.shape[0], a.shape[1], b.shape[1], a.float, b.float)
    columns = b.shape[1] * prod(core.shape[2:])
    return _Low(a.shape[1], a.shape[0], columns, lambda: a.float().mT, lambda: _through(core, b))


def _lokr_problem(shapes: Shapes) -> str:
    for side in ("lokr_w1", "lokr_w2"):
        whole, halves = side in shapes, [f"{side}_{half}" in shapes for half in "ab"]
        if whole + all(halves) != 1 or whole + any(halves) != 1:
            return f"has to hold either {side} or both {side}_a and {side}_b"
    if "lokr_t2" in shapes and "lokr_w2" in shapes:
        return "has both lokr_w2 and lokr_t2"
    if not all(_is_lokr_factor(slot, shape) for slot, shape in shapes.items() if slot.startswith("lokr")):
        return "has a LoKr factor that is no matrix"
    if not _fit(shapes, "lokr_w1_a", "lokr_w1_b") or not _fit_second(shapes):
        return "the factors of a LoKr do not fit together"
    return _size_problem(_lokr, shapes)


def _is_lokr_factor(slot: Slot, shape: tuple[int, ...]) -> bool:
    return all(shape) and (len(shape) == 2 or (len(shape) > 2 and slot in ("lokr_w1", "lokr_w2", "lokr_t2")))


def _fit(shapes: Shapes, left: Slot, right: Slot) -> bool:
    return left not in shapes or shapes[left][1] == shapes[right][0]


def _fit_second(shapes: Shapes) -> bool:
    if (t := shapes.get("lokr_t2")) is None:
        return _fit(shapes, "lokr_w2_a", "lokr_w2_b")
    return t[:2] == (shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][0])


def _lokr(tensors: Tensors) -> Factors:
    """``(U1 V1) kron (U2 V2) = (U1 kron U2) (V1 kron V2)``, of rank r1 r2, each cut to what its matrix can have."""
    one = _lokr_side(tensors.get("lokr_w1"), tensors.get("lokr_w1_a"), tensors.get("lokr_w1_b"), None)
    two = _lokr_side(tensors.get("lokr_w2"), tensors.get("lokr_w2_a"), tensors.get("lokr_w2_b"), tensors.get("lokr_t2"))
    both = _Low(
        one.rows * two.rows,
        one.rank * two.rank,
        one.columns * two.columns,
        lambda: torch.kron(one.left().contiguous(), two.left().contiguous()),
        lambda: torch.kron(one.right().contiguous(), two.right().contiguous()),
    )
    core = tensors.get("lokr_t2", tensors.get("lokr_w2"))
    stored = next(tensor for slot, tensor in tensors.items() if slot.startswith("lokr"))
    return _factors_of(both, "LoKr", stored, () if core is None else tuple(core.shape[2:]))


def _lokr_side(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> _Low:
    if whole is not None:
        return _beside_identity(whole.shape[0], prod(whole.shape[1:]), lambda: whole.float().flatten(1))
    assert a is not None
    assert b is not None, "_lokr_problem comes first"
    return _low_rank(a, b, core).cut()


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
