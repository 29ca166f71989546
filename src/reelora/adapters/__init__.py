"""A LoRA as data: what it is made of, how strong it is, and its file."""

from .adapter import ROLES, Adapter, by_role, split_role
from .advice import Advice, share_of_layer
from .algebra import METHODS, Kept, changed_elsewhere, diff, energy_kept, extract, merge, resize, spectrum
from .base import BASE_SHAPES, BASE_VALUES, base_of, compared_with_base, fingerprints_of
from .compare import largest_difference, relative_difference
from .pair import FactorA, FactorB, Magnitude, Pair, Update
from .producers import PRODUCERS, Producer
from .read import adapter_of, read_adapter
from .report import ModuleReport, advice_on, check_fits, content_hash, facts_of, report_modules
from .source import Source, open_source
from .spec import ATTENTION_TARGETS, LoraSpec
from .write import PROOFS, WRITTEN, Written, check_destination, write_adapter, write_with_report

__all__ = [
    "ATTENTION_TARGETS",
    "BASE_SHAPES",
    "BASE_VALUES",
    "METHODS",
    "PRODUCERS",
    "PROOFS",
    "ROLES",
    "WRITTEN",
    "Adapter",
    "Advice",
    "FactorA",
    "FactorB",
    "Kept",
    "LoraSpec",
    "Magnitude",
    "ModuleReport",
    "Pair",
    "Producer",
    "Source",
    "Update",
    "Written",
    "adapter_of",
    "advice_on",
    "base_of",
    "by_role",
    "changed_elsewhere",
    "check_destination",
    "check_fits",
    "compared_with_base",
    "content_hash",
    "diff",
    "energy_kept",
    "extract",
    "facts_of",
    "fingerprints_of",
    "largest_difference",
    "merge",
    "open_source",
    "read_adapter",
    "relative_difference",
    "report_modules",
    "resize",
    "share_of_layer",
    "spectrum",
    "split_role",
    "write_adapter",
    "write_with_report",
]
