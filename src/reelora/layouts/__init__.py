"""Names: how every dialect spells the tensors of an adapter, and one engine that reads them all."""

from .detect import Reading, detect
from .layout import Layout
from .place import ROLES, Place, Slot
from .suffixed import REFUSED
from .tables import LAYOUTS

__all__ = ["LAYOUTS", "REFUSED", "ROLES", "Layout", "Place", "Reading", "Slot", "detect"]
