"""Weights to codes: one method a file."""

from __future__ import annotations

from .gptq import Factor, inverse_factor, round_gptq
from .nearest import round_nearest

__all__ = ["Factor", "inverse_factor", "round_gptq", "round_nearest"]
