"""The verb ``generate``: from prompts, a file of them, a sweep or an earlier video to files."""

from .place import Place
from .run import GenerateOutcome, generate
from .saving import Saving, check_codec
from .wishes import Wishes

__all__ = ["GenerateOutcome", "Place", "Saving", "Wishes", "check_codec", "generate"]
