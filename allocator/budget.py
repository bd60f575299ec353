"""The budget language: what a user writes, as whole bytes.

512MiB  1.5GB  536870912     bytes of all weights as stored, left-alone tensors included
3.25bpw                      stored bits a weight over the units that the plan may touch
40%                          of the model's size in its own dtype
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from math import floor
from typing import Literal

from ..sensitivity.units import Inventory
from .errors import UsageError

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
LARGEST = 10**15  # bytes, or 10**9 times the percent or bits: totals stay within what a database and a JSON reader hold
FORMS = "write bytes (512MiB, 1.5GB, 536870912), bits per weight (3.25bpw) or a share of the model (40%)"


@dataclass(frozen=True)
class Budget:
    """A parsed budget: `amount` bytes, bits a weight, or percent."""

    text: str
    kind: Literal["bytes", "bpw", "percent"]
    amount: Decimal

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget. Raises UsageError, saying how budgets are written, for anything else.

        >>> Budget.parse("1.5 KiB").amount, Budget.parse("3bpw").kind
        (Decimal('1536.0'), 'bpw')
        """
        text = str(text)
        match = re.fullmatch(r"\s*(\d+(?:_\d{3})*(?:\.\d+)?|\.\d+)\s*([A-Za-z%]*)\s*", text)
        if text.strip().lower().startswith("fits"):
            raise UsageError(f"budget {text!r}: budgets for a whole device are not available in this version; {FORMS}")
        if not match:
            raise UsageError(f"budget {text!r} cannot be read; {FORMS}")
        number, unit = Decimal(match[1].replace("_", "")), match[2].lower()
        if number * UNITS.get(unit, 10**9) >= LARGEST:
            raise UsageError(f"budget {text[:40]!r} is beyond any device; {FORMS}")
        if number <= 0:
            raise UsageError(f"budget {text!r} is not above zero; {FORMS}")
        if unit == "bpw":
            return cls(text, "bpw", number)
        if unit == "%":
            return cls(text, "percent", number)
        if unit in ("k", "m", "g", "t"):
            raise UsageError(f"budget {text!r} is ambiguous; write {match[1]}{unit.upper()}iB or {match[1]}{unit.upper()}B")
        if unit not in UNITS:
            raise UsageError(f"budget {text!r} has an unknown unit {match[2]!r}; {FORMS}")
        return cls(text, "bytes", number * UNITS[unit])

    def limit_bytes(self, inventory: Inventory, pinned_parameters: int = 0, pinned_bytes: int = 0) -> int:
        """Bytes allowed for all weights of the model. What is pinned, with its bytes, stands outside a budget in bpw."""
        if self.kind == "bytes":
            return floor(self.amount)
        if self.kind == "percent":
            return floor(self.amount * inventory.native_bytes / 100)
        free = inventory.unit_parameters - pinned_parameters
        return inventory.fixed_bytes + pinned_bytes + floor(self.amount * free / 8)


def readable(count: int) -> str:
    """Bytes for a person: `60.0 MiB (62,914,560 bytes)`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g} {unit} ({count:,} bytes)"
    return f"{count:,} bytes"
