"""What this machine can do, and whether an adapter fits a model."""

from .machine import examine_machine
from .match import Diagnosis, examine

__all__ = ["Diagnosis", "examine", "examine_machine"]
