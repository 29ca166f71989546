"""Several adapters into one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reelora.adapters.adapter import Adapter
from reelora.adapters.pair import Pair, Update
from reelora.errors import ConfigError, MismatchError, first_few, nearest

from .checks import check_ready
from .core import Reduced, known_scale
from .kept import Kept
from .low_rank import reduce_dense
from .methods import METHODS, Method, draw_for
from .outcome import assemble
from .progress import OnProgress, watched
from .resize import reduce_pair
from .sizes import Size, is_number

__all__ = ["merge"]

Parts = Sequence[tuple[Adapter, float]]
"""Adapters with their strengths."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is asked for; ConfigError lists everything about it that is impossible."""

    parts: Parts
    method: str
    size: Size | None
    density: float | None
    seed: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise ConfigError("This cannot be merged:\n" + "\n".join(f"- {problem}" for problem in problems))


def _problems(job: _Job) -> Iterator[str]:
    row = METHODS.get(job.method)
    if not job.parts:
        yield "no adapter is given: name at least one, with its strength"
    if bad := [f"{strength!r}" for _, strength in job.parts if not is_number(strength)]:
        yield f"{len(bad)} strengths are no finite numbers: {first_few(bad)}"
    if row is None:
        yield f"no method is called {job.method!r}: {nearest(job.method, METHODS)}"
    elif row.thin is None and job.density is not None:
        yield f"{job.method} keeps every entry and takes no density"
    elif row.thin is not None and not (is_number(job.density) and 0 < job.density <= 1):
        yield f"{job.method} needs density=, the share of entries that stays, over 0 and at most 1, not {job.density!r}"
    if row and row.join and job.size is None:
        yield f"{job.method} gives dense updates: say how large the result may be, with rank= or keep="
    if not job.dtype.is_floating_point:
        yield f"dtype is {job.dtype}: it has to be a floating point type"


def merge(
    parts: Parts,
    method: str = "sum",
    rank: int | None = None,
    keep: float | None = None,
    *,
    density: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    on_progress: OnProgress | None = None,
) -> Adapter:
    """One adapter that does what several do together; they may differ in rank, alpha, rsLoRA, targets and roles.

    ``sum`` is exact: ``W = sum_i strength_i scale_i B_i A_i``, the factors side by side with the gain folded into B alone. Its
    rank is the sum of the ranks; with ``rank`` (at most this) or ``keep`` (the smallest rank of each module that keeps this
    share of the energy) it is reduced as `resize` does. Factors are never averaged: that is another function.

    The other methods thin the true updates ``scale_i B_i A_i``, a module at a time, then multiply each by its strength, then
    join them; what they give is dense, so that they need ``rank`` or ``keep``. ``density`` is the share of entries that stays.

    - ``ties`` (arXiv:2306.01708, algorithm 1): the largest entries stay, per module rather than over the whole model; per entry
      the sign with the larger sum is elected (after the strengths), and the mean of the entries of that sign is taken. All
      strengths equal to s is the paper with lambda = s. The paper keeps 0.2.
    - ``dare`` (arXiv:2311.03099, section 3.2): each entry stays with probability ``density`` and is divided by it; the sum.
    - ``dare_ties``: entries are dropped as in ``dare``, then elected and averaged as in ``ties``.
    - ``magnitude_prune``: trimmed as in ``ties``, then the sum.

    A module that an adapter lacks counts as an update of zero. What is random depends on ``seed``, the module's name and the
    place in ``parts``, on nothing else. The result has scale 1: its strength is in its factors.

    Raises ConfigError for impossible settings; UnknownScaleError or AdapterError, with all adapters that have no scale, hold
    NaN or are a DoRA; MismatchError with every module whose shapes differ; all of it before anything is computed.
    """
    size = None if (rank, keep) == (None, None) else Size(rank=rank, keep=keep)
    job = _Job(parts=tuple(parts), method=method, size=size, density=density, seed=seed, dtype=dtype)
    check_ready([adapter for adapter, _ in job.parts])
    tokens = _tokens(job.parts)
    names = dict.fromkeys(name for adapter, _ in job.parts for name in adapter.pairs)
    if size is None:
        pairs, kept = {name: _side_by_side(name, job) for name in watched(names, on_progress)}, {}
    else:
        reduced = {name: _reduced(name, job, size) for name in watched(names, on_progress)}
        pairs, kept = {name: entry.pair for name, entry in reduced.items()}, {"energy_kept": str(Kept.of(reduced))}
    source = f"merged by {method}: scales and strengths are in the factors"
    return assemble(pairs, scale_source=source, provenance=_provenance(job) | kept, tokens=tokens)


def _side_by_side(name: str, job: _Job) -> Pair:
    """The factors of the sum; B alone takes the gain, in float32."""
    held = [(adapter.pairs[name], strength) for adapter, strength in job.parts if name in adapter.pairs]
    a = torch.cat([pair.a.to(job.dtype) for pair, _ in held])
    b = torch.empty(len(held[0][0].b), len(a), dtype=job.dtype)
    for (pair, strength), columns in zip(held, b.split([pair.rank for pair, _ in held], dim=1), strict=True):
        wide = columns if job.dtype == torch.float32 else torch.empty(columns.shape)  # in place: copies fragment the heap
        columns.copy_(wide.copy_(pair.b).mul_(known_scale(pair) * strength))
    return Pair(a, b, 1.0, kernel=held[0][0].kernel)


def _reduced(name: str, job: _Job, size: Size) -> Reduced:
    row = METHODS[job.method]
    if row.join is None:
        return reduce_pair(_side_by_side(name, replace(job, dtype=torch.float32)), size, dtypes=(job.dtype, job.dtype))
    kernel = next(adapter.pairs[name].kernel for adapter, _ in job.parts if name in adapter.pairs)
    entry = reduce_dense(row.join(_updates(name, job, row)), size, draw_for(job.seed, name), dtype=job.dtype)
    return entry._replace(pair=replace(entry.pair, kernel=kernel))


def _updates(name: str, job: _Job, row: Method) -> Iterator[Update]:
    """The thinned updates of one module, one at a time, each times its strength."""
    for place, (adapter, strength) in enumerate(job.parts):
        if name in adapter.pairs:
            update = adapter.delta(name)
            if row.thin is not None and job.density is not None:
                update = row.thin(update, job.density, draw_for(job.seed, name, place))
            yield update.mul_(strength)


def _tokens(parts: Parts) -> dict[str, Tensor]:
    """The textual-inversion tokens of all; MismatchError if one word is given two meanings."""
    tokens: dict[str, Tensor] = {}
    for adapter, _ in parts:
        if odd := [word for word, value in adapter.tokens.items() if word in tokens and not torch.equal(value, tokens[word])]:
            raise MismatchError(f"{len(odd)} tokens mean something else in each adapter: {first_few(odd)}. Rename one of them.")
        tokens |= adapter.tokens
    return tokens


def _provenance(job: _Job) -> dict[str, str]:
    """What all of them say, the trigger words of all, and what was merged how."""
    told = [adapter.provenance for adapter, _ in job.parts]
    agreed = {key: text for key, text in told[0].items() if all(entries.get(key) == text for entries in told)}
    words = dict.fromkeys(word for entries in told for word in entries.get("trigger_words", "").split(", ") if word)
    settings = "" if job.density is None else f", density {job.density:g}, seed {job.seed}"
    return {
        **agreed,
        **({"trigger_words": ", ".join(words)} if words else {}),
        "merged_from": "; ".join(f"{strength:g} x {_label(adapter)}" for adapter, strength in job.parts),
        "merged_by": f"{job.method}{settings}",
    }


def _label(adapter: Adapter) -> str:
    """What an adapter can be found again by."""
    marks = [f"{key} {adapter.provenance[key]}" for key in ("name", "hash", "config_hash") if adapter.provenance.get(key)]
    return ", ".join([repr(adapter), *marks])
