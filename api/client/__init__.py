"""The client: the verbs of bitplan over HTTP."""

from .client import Client

__all__ = ["Client"]
