"""Reelora: LoRA adapters for video diffusion, from the first clip to the finished video."""

__version__ = "0.1.0"
