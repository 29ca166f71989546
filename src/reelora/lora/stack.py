"""The pairs of all active adapters side by side, one A and one B for each module they act on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil

import torch
from torch import Tensor

from reelora.adapters import Pair, split_role

from .sites import SHARED_INPUT, Site
from .stacked import NOTHING, Held

__all__ = ["Members", "Part", "Stack", "build_stack"]

Members = Mapping[str, Mapping[str, Pair]]
"""The pairs that act, by adapter and there by site, both in the order that decides how they are stacked."""


_ALIGNMENT = 256
"""Bytes that every tensor in a flat buffer begins at a multiple of."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one site holds: A and B as its module takes them, and where its gains begin and end."""

    a: Tensor
    b: Tensor
    first: int
    last: int
    shared_a: Tensor | None
    """On ``to_q``, where ``to_k`` and ``to_v`` have branches too: the A of all three, one below the other."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Sites whose A lie one below the other in one tensor."""

    sites: Sequence[Site]
    ranks: Sequence[int]
    a: Tensor
    bs: Sequence[Tensor]

    def on(self, moved: Iterator[Tensor]) -> "_Group":
        """The same with the next tensors in place of its own."""
        return replace(self, a=next(moved), bs=[next(moved) for _ in self.bs])


class Stack:
    """What `build_stack` has made: A and B of every site, and the gains of all sites in one vector on each device."""

    def __init__(self, parts: Mapping[str, Part], scales: Tensor, owners: Tensor, devices: Mapping[str, torch.device]) -> None:
        self.parts = parts
        self._scales, self._owners, self._devices = scales, owners, devices
        self._one_of_role = {split_role(name)[0]: name for name in parts}
        self._flat = {device: torch.zeros(len(scales), device=device) for device in set(devices.values())}
        self.devices = frozenset(self._flat)
        """Where A and B of its sites are."""
        self._strengths: tuple[float, ...] = ()
        """Those that the gains were set to last."""
        self.held: Mapping[str, Held] = {name: self._held(name) for name in parts}
        """What stands in for each site, at the gains that `set_gains` gave last."""
        self.size_bytes = sum(part.a.nbytes + part.b.nbytes for part in parts.values())
        """Bytes of all A and B."""

    def set_gains(self, strengths: Sequence[float]) -> None:
        """Give every row of every A its gain, from the strengths of all members at all their sites, in their order."""
        if self._strengths == tuple(strengths):
            return
        self._strengths = ()  # until all devices have them
        gains = self._gains(strengths)
        for flat in self._flat.values():
            flat.copy_(gains)
        self._strengths = tuple(strengths)

    def gains_of_samples(self, samples: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """The gains ``(n, r)`` of each site for n samples, each with its strengths as `set_gains` takes them."""
        rows = torch.stack([self._gains(strengths) for strengths in samples])
        there = {device: rows.to(device) for device in self._flat}
        return {name: there[self._devices[name]][:, part.first : part.last] for name, part in self.parts.items()}

    def is_placed_for(self, sites: Mapping[str, Site]) -> bool:
        """Whether every model still computes where A and B of its modules are, and in their dtype; asks one module of each."""
        return all(self._fits(sites[name]) for name in self._one_of_role.values())

    def _fits(self, site: Site) -> bool:
        return site.device == self._devices[site.name] and site.dtype in (None, self.parts[site.name].a.dtype)

    def _gains(self, strengths: Sequence[float]) -> Tensor:
        """In float64 up to the last rounding."""
        return (self._scales * torch.tensor([*strengths, 0.0], dtype=torch.float64)[self._owners]).float()

    def _held(self, name: str) -> Held:
        part = self.parts[name]
        gains = self._flat[self._devices[name]][part.first : part.last]
        return {**NOTHING, "lora_a": part.a, "lora_b": part.b, "gains": gains, "shared_a": part.shared_a}


@torch.inference_mode(mode=False)  # what is made in it could not be written again outside of it
def build_stack(members: Members, sites: Mapping[str, Site], *, rank_bucket: int) -> Stack:
    """Stack the pairs of the members at each site; ranks are filled up with zeros to a multiple of ``rank_bucket``.

    Values take the dtype of the module's weight. What needs no copy is none: a single adapter's B is the mapped file itself.
    """
    held: dict[str, list[tuple[int, Pair]]] = {}
    number = 0
    for pairs in members.values():
        for name, pair in pairs.items():
            held.setdefault(name, []).append((number, pair))
            number += 1
    return _Builder(held, nobody=number, rank_bucket=rank_bucket).build(_groups([sites[name] for name in held]))


def _groups(sites: Sequence[Site]) -> list[list[Site]]:
    """Query, key and value of one attention together where all three are there, every other site alone."""
    together: dict[tuple[int, str], list[Site]] = {}
    for site in sites:
        together.setdefault(site.group, []).append(site)
    groups: list[list[Site]] = []
    for members in together.values():
        whole = len(members) == len(SHARED_INPUT)
        groups += [sorted(members, key=lambda site: SHARED_INPUT.index(site.leaf))] if whole else [[site] for site in members]
    return groups


class _Builder:
    """Goes through the sites once, group by group."""

    def __init__(self, held: Mapping[str, Sequence[tuple[int, Pair]]], *, nobody: int, rank_bucket: int) -> None:
        self._held, self._nobody, self._bucket = held, nobody, rank_bucket
        self._rows: list[tuple[float, int, int]] = []
        """Scale, owner and number of rows that have them."""

    def build(self, groups: Sequence[Sequence[Site]]) -> Stack:
        parts: dict[str, Part] = {}
        devices: dict[str, torch.device] = {}
        last = 0
        for group in _on_their_devices([self._group(sites) for sites in groups]):
            views = group.a.split(list(group.ranks))
            for place, (site, a, b) in enumerate(zip(group.sites, views, group.bs, strict=True)):
                first, last = last, last + len(a)
                shared = group.a if place == 0 and len(group.sites) > 1 else None
                parts[site.name], devices[site.name] = Part(site.view(a), b, first, last, shared), site.device
                self._add_gains(site)
        scales, owners, counts = (torch.tensor(column) for column in zip(*self._rows, strict=True))
        return Stack(parts, scales.double().repeat_interleave(counts), owners.repeat_interleave(counts), devices)

    def _group(self, sites: Sequence[Site]) -> _Group:
        ranks = [self._rank(site) for site in sites]
        return _Group(sites, ranks, self._stacked_a(sites, ranks), [self._stacked_b(site) for site in sites])

    def _rank(self, site: Site) -> int:
        return self._bucket * ceil(sum(pair.rank for _, pair in self._held[site.name]) / self._bucket)

    def _stacked_a(self, group: Sequence[Site], ranks: Sequence[int]) -> Tensor:
        pairs = [pair for site in group for _, pair in self._held[site.name]]
        if len(pairs) == 1 and pairs[0].rank == ranks[0]:
            return _cast(pairs[0].a, group[0])
        a = torch.empty(sum(ranks), group[0].shape[1], dtype=group[0].dtype or pairs[0].a.dtype)
        for site, part in zip(group, a.split(list(ranks)), strict=True):
            _fill(part, [pair.a for _, pair in self._held[site.name]])
        return a

    def _stacked_b(self, site: Site) -> Tensor:
        pairs = [pair for _, pair in self._held[site.name]]
        if len(pairs) == 1 and pairs[0].rank == self._rank(site):
            return _cast(pairs[0].b, site)
        b = torch.empty(site.shape[0], self._rank(site), dtype=site.dtype or pairs[0].b.dtype)
        _fill(b.T, [pair.b.T for pair in pairs])
        return b

    def _add_gains(self, site: Site) -> None:
        held = self._held[site.name]
        self._rows += [(pair.scale or 0.0, number, pair.rank) for number, pair in held]
        self._rows.append((0.0, self._nobody, self._rank(site) - sum(pair.rank for _, pair in held)))


def _cast(tensor: Tensor, site: Site) -> Tensor:
    return tensor.to(site.dtype or tensor.dtype)


def _fill(target: Tensor, parts: Sequence[Tensor]) -> None:
    """Put the rows of the parts below each other into ``target``, and zeros below them."""
    first = 0
    for part in parts:
        target[first : first + len(part)] = part
        first += len(part)
    target[first:] = 0


def _on_their_devices(groups: Sequence[_Group]) -> list[_Group]:
    """The groups where their modules compute; what goes to an accelerator goes there in one copy."""
    placed: list[_Group] = []
    for device, members in groupby(sorted(groups, key=_device_of), key=_device_of):
        held = list(members)
        if device == "cpu":
            placed += held
        else:
            moved = iter(_in_one_copy([tensor for group in held for tensor in (group.a, *group.bs)], torch.device(device)))
            placed += [group.on(moved) for group in held]
    return placed


def _device_of(group: _Group) -> str:
    return str(group.sites[0].device)


def _in_one_copy(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on an accelerator, as views of one flat buffer that was filled by one transfer from pinned memory."""
    sizes = [_ALIGNMENT * ceil(tensor.nbytes / _ALIGNMENT) for tensor in tensors]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, room in zip(tensors, host.split(sizes), strict=True):
        _as(room, tensor).copy_(tensor)
    there = host.to(device, non_blocking=True)
    return [_as(room, tensor) for tensor, room in zip(tensors, there.split(sizes), strict=True)]


def _as(room: Tensor, like: Tensor) -> Tensor:
    """The bytes of ``room`` as a tensor of the shape and dtype of ``like``."""
    return room[: like.nbytes].view(like.dtype).view(like.shape)
