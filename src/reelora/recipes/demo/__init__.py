"""``demo``: teaches the pocket model a shape that it has never seen, and measures what came of it."""

from .run import DemoOutcome, DemoPlan, demo

__all__ = ["DemoOutcome", "DemoPlan", "demo"]
