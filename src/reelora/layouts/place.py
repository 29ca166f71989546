"""Where one tensor of an adapter belongs."""

from typing import Literal, NamedTuple

__all__ = ["DENOISER", "ROLES", "Place", "Slot"]

ROLES = ("transformer", "unet", "text_encoder", "text_encoder_2")
"""The parts of a pipeline that an adapter may change; every module name begins with one."""

DENOISER = "denoiser"
"""Stands for ``transformer`` or ``unet`` while a spelling does not tell them apart; the whole file does."""

Slot = Literal[
    "A", "B", "mid", "alpha", "rank", "magnitude", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "token", "base", "refused",
]  # fmt: skip
"""What a tensor is to its module; of no module: a ``token`` embedding, a weight of the ``base``, or ``refused``."""


class Place(NamedTuple):
    """One tensor explained: its module in our naming, its slot there, and the name of the adapter slot if it has one."""

    module: str
    slot: Slot
    name: str = ""
