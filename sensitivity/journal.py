"""A journal of finished work, for whoever wants proof that nothing was done twice.

Only when BITPLAN_JOURNAL names a file: one line for each piece of work, written once its result is in place.
"""

from __future__ import annotations

import os
import time


def journal(name: str) -> None:
    """Note that `name` is done: name, time and process in one line, appended whole."""
    path = os.environ.get("BITPLAN_JOURNAL")
    if path:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, f"{name}\t{time.time():.3f}\t{os.getpid()}\n".encode())
        finally:
            os.close(file)
