"""Sampling as the stock diffusers pipelines do it."""

from .sample import sample_stock

__all__ = ["sample_stock"]
