"""The whole story: a model and a budget in, a verified bit plan out.

This is the public face. Names that need torch are loaded when first used, so that a server can plan from stored profiles
without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..kernels.formats import FORMATS
from ..sensitivity import METRICS
from ..sensitivity.progress import Progress
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import Inventory
from .allocate import allocate, allocate_request
from .budget import Budget
from .errors import (
    BitplanError,
    DiskFull,
    Forbidden,
    Infeasible,
    Interrupted,
    ModelError,
    NotFound,
    PlanMismatch,
    StoreUnavailable,
    UnknownName,
    UsageError,
    VerificationFailed,
)
from .home import home_folder
from .plan import Plan
from .profile import inspect_model, known_inventory, known_profile, open_profile, profile_model
from .request import SOLVERS, PlanRequest, ProfileRequest
from .solve import check_budget, plan_from_profile
from .source import source_key
from .targets import TARGETS

if TYPE_CHECKING:
    from .executed import load_executed
    from .execution import execute
    from .verification import ExecutionReport, verify

METRIC_SUMMARIES: dict[str, str] = {name: metric.summary for name, metric in METRICS.items()}

_LAZY = {"execute": "execution", "load_executed": "executed", "verify": "verification", "ExecutionReport": "verification"}

__all__ = [
    "FORMATS",
    "METRICS",
    "METRIC_SUMMARIES",
    "SOLVERS",
    "TARGETS",
    "BitplanError",
    "Budget",
    "DiskFull",
    "ExecutionReport",
    "Forbidden",
    "Infeasible",
    "Interrupted",
    "Inventory",
    "ModelError",
    "NotFound",
    "Plan",
    "PlanMismatch",
    "PlanRequest",
    "ProfileRequest",
    "Progress",
    "SensitivityReport",
    "StoreUnavailable",
    "UnknownName",
    "UsageError",
    "VerificationFailed",
    "allocate",
    "allocate_request",
    "check_budget",
    "execute",
    "home_folder",
    "inspect_model",
    "known_inventory",
    "known_profile",
    "load_executed",
    "open_profile",
    "plan_from_profile",
    "profile_model",
    "source_key",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
