"""Programs that write adapters without saying how strong they are, and what they always use."""

from typing import NamedTuple

__all__ = ["PRODUCERS", "Producer"]


class Producer(NamedTuple):
    """What one program trains with when nobody tells it otherwise."""

    alpha: float
    rank: int | None
    """The rank that this alpha belongs to; None: any."""
    source: str


PRODUCERS = {
    "cogvideo-finetune": Producer(64, 128, "CogVideo finetune/schemas/args.py"),
    "cogkit": Producer(64, 128, "CogKit, which always trains 64/128"),
    "sat": Producer(1, None, "sat/model/finetune/lora2.py: lora_alpha=1"),
}
"""Every producer profile that ``read_adapter(producer=...)`` knows."""
