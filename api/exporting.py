"""Exports: whose files can be written from a plan, and where they lie below the artifacts root."""

from __future__ import annotations

from ..allocator.errors import UnknownName

EXPORTS = ("bitplan",)  # the folder that `bitplan execute` writes


def check_export(to: str) -> None:
    """Raises UnknownName."""
    if to not in EXPORTS:
        raise UnknownName("export", to, EXPORTS)


def export_folder(plan_id: str, to: str) -> str:
    return f"exports/{plan_id}/{to}"
