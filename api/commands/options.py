"""What commands share: options and arguments that several take, and how a result is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="Hub name, folder, .gguf file, or alias such as smollm2-135m.")]
PlanText = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's id, a unique prefix of it, or a file.")]
Metric = Annotated[str, typer.Option(help="Rule that estimates how much a unit minds a format.")]
Formats = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="The formats to choose among; default: the target's palette.")
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text file, folder of texts or of images; default: built-in text.")
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to measure on.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Rounding = Annotated[str, typer.Option(help="How weights are rounded: gptq, or nearest, which needs no data.")]
Stream = Annotated[bool, typer.Option("--stream", help="Keep one block of the model in memory at a time.")]
Sibling = Annotated[
    str | None, typer.Option(metavar="PROFILE", help="Take the losses of a smaller model's stored profile; measures nothing.")
]
Device = Annotated[
    str, typer.Option("--torch-device", metavar="NAME", help="Where torch computes: auto, cpu, cuda, cuda:1, mps, ...")
]
Target = Annotated[str, typer.Option(help="Engine that the plan must load in.")]
Solver = Annotated[str, typer.Option(help="Way to choose.")]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", envvar="BITPLAN_SERVER", help="Have a service do it; its key is BITPLAN_API_KEY."),
]
DatabaseUrl = Annotated[str | None, typer.Option(help="Store to use; default: SQLite under BITPLAN_HOME.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, everything else on standard error.")]


def show(result: Any) -> None:
    """A document as JSON, anything else as text, on standard output."""
    if isinstance(result, dict):
        print(json.dumps(result, indent=1))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140  # a file or a pipe has no width to keep to
    Console(width=width, highlight=False).print(result)
