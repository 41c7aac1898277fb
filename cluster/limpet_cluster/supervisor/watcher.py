"""Whether the application's code changed: the eyes of ``limpet start --dev``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_MOST_FILES: Final = 20_000
"""Beyond this the folder is no application; the rest is not watched."""

Snapshot = dict[str, tuple[int, int]]


class CodeWatcher:
    """Compares the ``*.py`` files below a folder with how they were when last asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen = self._look()

    def changed(self) -> list[Path]:
        """Return the files that were written, made or removed since the last call."""
        now = self._look()
        if now == self._seen:
            return []
        before, self._seen = self._seen, now
        return sorted(
            Path(name) for name in before.keys() | now.keys() if before.get(name) != now.get(name)
        )

    def _look(self) -> Snapshot:
        files: Snapshot = {}
        folders = [os.fspath(self.root)]
        while folders and len(files) < _MOST_FILES:
            try:
                entries = list(os.scandir(folders.pop()))
            except OSError:  # gone, or not for us
                continue
            for entry in entries:
                name = entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if name not in _SKIPPED and not name.startswith("."):
                            folders.append(entry.path)
                    elif name.endswith(".py"):
                        status = entry.stat()
                        files[entry.path] = (status.st_mtime_ns, status.st_size)
                except OSError:
                    continue
        return files
