"""Writing files so that a reader sees the old one or the whole new one, never a half."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Callable[[str], str]]:
    """Files that appear in a folder when the block ends well, in the order of asking, or not at all.

    Yields a function from a file's final name to the path to write now, in the same folder: a rename
    replaces a file at once, and whoever has the old one mapped or open keeps it.
    """
    written: dict[str, str] = {}
    modes: dict[str, int] = {}

    def temporary(name: str) -> str:
        path = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
        with open(path, "xb") as file:
            modes[path] = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        written[name] = path
        return path

    try:
        yield temporary
        for path, mode in modes.items():
            os.chmod(path, mode)  # safetensors makes its files readable by their owner alone
            _flush(path)
        for name, path in written.items():
            os.replace(path, os.path.join(folder, name))
    finally:
        for path in written.values():
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _flush(path: str) -> None:
    """Put a file on the disk before it is renamed: after a power cut a name never leads to an empty file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: str, text: str) -> None:
    """Write a text file as UTF-8."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
