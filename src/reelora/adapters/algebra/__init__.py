"""Arithmetic on adapters: merge, resize, extract, compare; exact, and never dense where the factors are enough."""

from .core import Core, Reduced, core, inner, singular_values
from .diff import Difference, ModuleDifference, diff
from .extract import Weights, changed_elsewhere, extract
from .kept import Kept, energy_kept
from .merge import merge
from .methods import METHODS, Method
from .progress import OnProgress
from .resize import resize, resize_with_report
from .spectrum import Spectrum, spectrum

__all__ = [
    "METHODS",
    "Core",
    "Difference",
    "Kept",
    "Method",
    "ModuleDifference",
    "OnProgress",
    "Reduced",
    "Spectrum",
    "Weights",
    "changed_elsewhere",
    "core",
    "diff",
    "energy_kept",
    "extract",
    "inner",
    "merge",
    "resize",
    "resize_with_report",
    "singular_values",
    "spectrum",
]
