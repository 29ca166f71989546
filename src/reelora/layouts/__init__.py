"""Names: how every dialect spells the tensors of an adapter, and one engine that reads them all."""

from .detect import Reading, detect
from .layout import Layout
from .place import ROLES, Place, Slot
from .sat_model import SAT_ROLES, Cut, Join, SatNames, SatReading, Shards, adapter_keys, sat_names
from .suffixed import REFUSED
from .tables import LAYOUTS

__all__ = [
    "LAYOUTS",
    "REFUSED",
    "ROLES",
    "SAT_ROLES",
    "Cut",
    "Join",
    "Layout",
    "Place",
    "Reading",
    "SatNames",
    "SatReading",
    "Shards",
    "Slot",
    "adapter_keys",
    "detect",
    "sat_names",
]
