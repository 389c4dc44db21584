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
        self._sentences: list[str] = []
        self._news = asyncio.Event()
        self._closed = False

    def say(self, sentence: str) -> None:
        """Append a sentence, unless it only repeats the last one."""
        if not self._closed and len(self._sentences) < MAX_SENTENCES and sentence not in self._sentences[-1:]:
            self._sentences.append(sentence)
            self._wake()

    def close(self) -> None:
        """Nothing more will be said: listeners end once they have read everything."""
        self._closed = True
        self._wake()

    async def follow(self) -> AsyncIterator[str]:
        """Yield every sentence from the first, and new ones as they are said, until closed."""
        read = 0
        while True:
            while read < len(self._sentences):
                read += 1
                yield self._sentences[read - 1]
            if self._closed:
                return
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
