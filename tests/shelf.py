"""Tiny models in folders under one BITPLAN_HOME: profiled once a session, however many tests ask for their plans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import models
from bitplan.allocator import ExecutionReport, Plan, PlanRequest, ProfileRequest, allocate_request, execute, verify
from bitplan.sensitivity.calibration import read_text

# One of each kind: dense, mixture of experts, encoder, vision, and two convolutional ones (in a folder, and a bare file).
KINDS = ("llama", "mixtral", "bert", "dinov2", "resnet", "residual")
FORMATS = ("int3-g64-asym", "int4-g64", "int5-row-asym", "int8-g64-asym")
TOKENS = 256


@dataclass(frozen=True)
class Shelf:
    """Everything lies below `root`; nothing that a test gets from here may be changed."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @cached_property
    def images(self) -> Path:
        return models.save_images(self.root / "images", classes=3)

    @cached_property
    def text(self) -> Path:
        """A part of the text that the package ships: less to tokenize."""
        file = self.root / "text.txt"
        file.write_text(read_text(None)[:24_000], encoding="utf-8")
        return file

    def model(self, kind: str) -> Path:
        folder = self.root / kind
        return folder if folder.exists() else models.save(kind, folder)

    def profile_request(self, kind: str) -> ProfileRequest:
        source = self.images if models.KINDS[kind].takes_images else self.text
        return ProfileRequest(str(self.model(kind)), formats=FORMATS, calibration=str(source), tokens=TOKENS)

    def request(self, kind: str, budget: str | None = None, target: str = "native") -> PlanRequest:
        """A budget of about five to seven bits a weight, where none is given."""
        narrow = models.KINDS[kind].dtype.itemsize == 2
        return PlanRequest(self.profile_request(kind), budget or ("30%" if narrow else "22%"), target)

    def plan(self, kind: str, budget: str | None = None, target: str = "native") -> Plan:
        return allocate_request(self.request(kind, budget, target), home=self.home)

    def executed(self, kind: str) -> Path:
        """The folder with the executed plan of `kind`."""
        folder = self.root / "executed" / kind
        if not folder.exists():
            execute(self.plan(kind), folder, home=self.home)
        return folder

    def report(self, kind: str) -> ExecutionReport:
        """The verification of the plan of `kind`."""
        if kind not in self._reports:
            self._reports[kind] = verify(self.plan(kind), home=self.home)
        return self._reports[kind]

    @cached_property
    def _reports(self) -> dict[str, ExecutionReport]:
        return {}
