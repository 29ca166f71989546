"""Another rank for an adapter."""

from dataclasses import replace

import torch

from reelora.adapters.adapter import Adapter
from reelora.adapters.pair import Pair
from reelora.adapters.threads import one_thread

from .checks import check_ready
from .core import Reduced, core, inner, known_scale, singular_values
from .kept import Kept
from .outcome import assemble
from .progress import OnProgress, watched
from .sizes import Size, check_size_bytes, exactly_one, share_bytes

__all__ = ["reduce_pair", "resize", "resize_with_report"]


def resize(
    adapter: Adapter,
    rank: int | None = None,
    keep: float | None = None,
    size_bytes: int | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Adapter:
    """The same adapter at another rank, each module the best approximation of that rank (Eckart and Young, 1936).

    Exactly one is given: ``rank``, at most this everywhere; ``keep``, the smallest rank of each module that keeps this share of
    its energy (sum of squared singular values); ``size_bytes``, the bytes of all values together, shared across the modules so
    that most energy is kept in all (a file's header comes on top). A module that already is that small stays as it is, bit for
    bit; scale and dtype stay. How much is kept stands in the provenance; `energy_kept` works it out from both adapters.

    Raises ConfigError for an impossible size (and says the smallest possible one), UnknownScaleError while the scale is
    unknown, AdapterError for NaN, infinite values and a DoRA. Computed in float64; no matrix of out x in is built.
    """
    return resize_with_report(adapter, rank, keep, size_bytes, on_progress=on_progress)[0]


@one_thread()
def resize_with_report(
    adapter: Adapter,
    rank: int | None = None,
    keep: float | None = None,
    size_bytes: int | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> tuple[Adapter, Kept]:
    """As `resize`, and how much of every module is kept."""
    exactly_one(rank=rank, keep=keep, size_bytes=size_bytes)
    sizes = {} if size_bytes is not None else dict.fromkeys(adapter.pairs, Size(rank=rank, keep=keep))
    check_ready([adapter])
    if size_bytes is not None:
        sizes = {name: Size(rank=share) for name, share in _shares(adapter, size_bytes).items()}
    reduced = {name: _resized(adapter.pairs[name], sizes[name]) for name in watched(adapter.pairs, on_progress)}
    kept = Kept.of(reduced)
    resized = assemble(
        {name: entry.pair for name, entry in reduced.items()},
        scale_source=f"{adapter.scale_source}; kept when resized",
        provenance={**adapter.provenance, "energy_kept": str(kept)},
        tokens=adapter.tokens,
    )
    return resized, kept


def _resized(pair: Pair, size: Size) -> Reduced:
    return reduce_pair(pair, size, dtypes=(pair.a.dtype, pair.b.dtype))


def _shares(adapter: Adapter, size_bytes: int) -> dict[str, int]:
    costs = {name: _cost(pair) for name, pair in adapter.pairs.items()}
    check_size_bytes(size_bytes, costs)
    return share_bytes({name: singular_values(pair) for name, pair in adapter.pairs.items()}, costs, size_bytes)


def _cost(pair: Pair) -> int:
    """Bytes of one rank."""
    out, inp = pair.shape
    return out * pair.b.element_size() + inp * pair.a.element_size()


def reduce_pair(pair: Pair, size: Size, *, dtypes: tuple[torch.dtype, torch.dtype]) -> Reduced:
    """A pair at another size, with the same scale, in ``dtypes`` (of A and B); the same values if it already is that small."""
    if size.rank is not None and size.rank >= pair.rank:
        return Reduced(_cast(pair, dtypes), 0.0, inner(pair, pair))
    held = core(pair)
    rank = size.rank_for(held.tails)
    assert rank is not None, "a core knows all singular values, so that some rank keeps enough"
    if rank >= pair.rank:
        return Reduced(_cast(pair, dtypes), 0.0, float(held.tails[0]))
    return held.reduced(rank, scale=_lasting_scale(pair), dtypes=dtypes)


def _cast(pair: Pair, dtypes: tuple[torch.dtype, torch.dtype]) -> Pair:
    scale = _lasting_scale(pair)
    b = pair.b if scale == pair.scale else pair.b.float() * known_scale(pair)
    return replace(pair, a=pair.a.to(dtypes[0]), b=b.to(dtypes[1]), scale=scale)


def _lasting_scale(pair: Pair) -> float:
    """The scale of the result; no spec has one at or under 0, so that such a scale goes into the factors."""
    scale = known_scale(pair)
    return scale if scale > 0 else 1.0
