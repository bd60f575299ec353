"""The client: the verbs of bitplan over HTTP."""

from .client import AsyncClient, Client
from .sweep import Sweep

__all__ = ["AsyncClient", "Client", "Sweep"]
