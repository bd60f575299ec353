"""Kept: values that cost much to make, the ones not used for longest let go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """At most `entries` values of at most `weight` together; `weigh` says what one weighs. Safe from several threads, two of
    which may make the same value at once: it must not matter whose is kept. A value above the whole weight is not kept."""

    def __init__(self, entries: int, weight: int, weigh: Callable[[Value], int]) -> None:
        self._entries, self._weight, self._weigh = entries, weight, weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._total = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value kept for `key`, or a new one, which is kept; what `make` raises is not."""
        found = self.find(key)
        return self.put(key, make()) if found is None else found

    def find(self, key: Key) -> Value | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value) -> Value:
        """Keep `value` in place of another; handed back."""
        weight = self._weigh(value)
        with self._lock:
            self._total -= self._values.pop(key, (value, 0))[1]
            if weight <= self._weight:
                self._values[key] = value, weight
                self._total += weight
            while len(self._values) > self._entries or self._total > self._weight:
                self._total -= self._values.popitem(last=False)[1][1]
        return value
