"""What `compiled` asks of classes that numba does not promise to keep. Importing this module needs them all, and turns
the collection of garbage off while numba compiles."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.event import Listener, register


class SharedCache(FunctionCache):
    """Machine code on disk, for processes that may compile the same function at the same moment."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CacheFiles(self._cache_path, self._impl.filename_base, stamp)


class _CacheFiles(IndexDataCacheFile):
    """An index of a function's machine code for several types of arguments, and a file for each.

    Numba numbers these files. Processes that compile for different types at the same moment may then give two files
    the same number, and run the wrong code later. Here a file is named after what it holds, and no index lists it
    before it is there; what can get lost is an entry, and the function is compiled again.
    """

    def save(self, key: Any, data: Any) -> None:
        digest = hashlib.sha256(repr((self._source_stamp, key)).encode()).digest()
        name = self._data_name(int.from_bytes(digest[:8], "big"))
        self._save_data(name, data)
        self._save_index({**self._load_index(), key: name})


class _NoCollection(Listener):
    """Numba makes very many objects and little garbage: looking for that takes a tenth of the time and more."""

    def __init__(self) -> None:
        self.was_enabled: list[bool] = []

    def on_start(self, _: Any) -> None:
        self.was_enabled.append(gc.isenabled())
        gc.disable()

    def on_end(self, _: Any) -> None:
        if self.was_enabled.pop():
            gc.enable()


register("numba:compiler_lock", _NoCollection())
