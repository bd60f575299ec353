"""The command line: `bitplan COMMAND ...`.

Results go to standard output, progress and sentences to standard error; with `--json` standard output is exactly one JSON
document, also when the command fails. Exit status: 0 done, 2 misuse or bad input, 3 infeasible budget, 4 verification
failed, 130 interrupted, 1 anything else. What is heavy is imported inside the commands, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from .commands import jobs, planning, plans, service, sweeping
from .commands.options import show

app = typer.Typer(
    help="Choose how many bits each part of a network gets, prove the choice, and measure that it keeps its promise.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False) -> None:
    pass


COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": planning.inspect,
    "profile": planning.profile,
    "spikes": planning.spikes,
    "plan": planning.plan,
    "frontier": planning.frontier,
    "sweep": sweeping.sweep,
    "execute": plans.execute,
    "export": plans.export,
    "verify": plans.verify,
    "list": plans.list_plans,
    "show": plans.show_plan,
    "diff": plans.diff,
    "serve": service.serve,
    "worker": service.worker,
    "gc": service.gc,
}
GROUPS = {"jobs": jobs.app, "keys": service.keys}

for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    try:
        status = app(given, prog_name="bitplan", standalone_mode=False)
    except TyperException as error:
        return _refuse(error, error.format_message().rstrip("."), getattr(error, "exit_code", 2), given)
    except Exception as error:
        from ..allocator.errors import BitplanError
        from .problems import kind_of

        if debug:
            raise
        if isinstance(error, BitplanError):
            return _refuse(error, str(error), kind_of(error).exit_status, given)
        return _refuse(error, f"{type(error).__name__}: {error}; run it again with --debug for the traceback", 1, given)
    if status == 130:
        print("bitplan: interrupted; what was measured is kept, and the same command goes on from there", file=sys.stderr)
    return int(status or 0)


def _refuse(error: Exception, sentence: str, status: int, given: list[str]) -> int:
    """One sentence on standard error, and with --json the problem document on standard output."""
    print(f"bitplan: {sentence}", file=sys.stderr)
    if "--json" in given:
        from ..allocator.errors import BitplanError, UsageError
        from .problems import other_problem, problem_of

        if isinstance(error, TyperException):
            error = UsageError(sentence)
        show(problem_of(error) if isinstance(error, BitplanError) else other_problem("internal-error", sentence))
    return status


if __name__ == "__main__":
    sys.exit(main())
