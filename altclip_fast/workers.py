"""Work on other threads, its results in the order of the items, a bounded number of batches ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A few threads, for calls that release the interpreter's lock. With `count` 0 the caller's own thread works.

    Leaving the context cancels what has not begun, and waits for what has.
    """

    def __init__(self, count: int) -> None:
        self._pool: Executor = ThreadPoolExecutor(count, thread_name_prefix="altclip_fast") if count else _Here()

    def batches(
        self, function: Callable[[Item], Result], items: Sequence[Item], size: int, ahead: int
    ) -> Iterator[list[Future[Result]]]:
        """For each `size` items the futures of `function(item)`, in order.

        Args:
            ahead: batches that are begun while the caller is busy with one; no more are held.
        """
        begun: deque[list[Future[Result]]] = deque()
        for start in range(0, len(items), size):
            begun.append([self._pool.submit(function, item) for item in items[start : start + size]])
            if len(begun) > ahead:
                yield begun.popleft()
        yield from begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Here(Executor):
    """Runs a call when it is submitted."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
