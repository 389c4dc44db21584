"""What a waiting student reads: an append-only log for each spawn, replayed to every listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

MAX_SENTENCES: Final = 200
"""Most sentences of one spawn; beyond, they are dropped."""


class ProgressLog:
    """Sentences in the order they were said. A browser may come late, and several may come."""

    def __init__(self) -> None:
        self._said: list[tuple[str, float]] = []
        self._news = asyncio.Event()
        self._closed = False

    def say(self, sentence: str, share: float) -> None:
        """Append a sentence, unless it only repeats the last one.

        Args:
            sentence: for the student.
            share: of the way that is done, 0.0 to 1.0; what was shown once is never taken back.
        """
        last, reached = self._said[-1] if self._said else ("", 0.0)
        if not self._closed and len(self._said) < MAX_SENTENCES and sentence != last:
            self._said.append((sentence, max(share, reached)))
            self._wake()

    def close(self) -> None:
        """Nothing more will be said: listeners end once they have read everything."""
        self._closed = True
        self._wake()

    def reopen(self) -> None:
        """More will be said: the storage is prepared once more."""
        self._closed = False

    async def follow(self) -> AsyncIterator[tuple[str, float]]:
        """Yield every sentence and its share from the first, and new ones as they are said, until closed."""
        read = 0
        while True:
            while read < len(self._said):
                read += 1
                yield self._said[read - 1]
            if self._closed:
                return
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
