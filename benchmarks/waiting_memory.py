"""What a user who waits costs the hub's memory in the dispatcher: ``python benchmarks/waiting_memory.py [USERS]``.

The goal is 10 KB for each. Counted is what waiting adds to a hub that already has the user and their spawner: the
hook's coroutine and task, its future and timer, the place, the work, the progress log and its sentence; and,
for comparison, a login for which nobody waits yet and a clean-up.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.hub.progress import ProgressLog
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Event, Request


class Endless:
    """A run that does not end, so that all others wait."""

    async def start(self, request: Request, on_event: Callable[[Event], None], *, limit: float) -> Any:
        return self

    def stop(self, why: Exception) -> None:
        pass

    async def finish(self) -> None:
        await asyncio.Event().wait()


async def hook(dispatcher: Dispatcher, number: int) -> None:
    place = Place(
        f"student{number}", f"/volumes/jupyterhub/student{number}", 1000, 100, "storage1", ("students",)
    )
    done = {"user_dir": f"{number:064x}", "tutorials": f"{number:064x}"}
    await dispatcher.wait(place, timeout=600, on_progress=ProgressLog().say, done=done)


async def cost(users: int, add: Callable[[Dispatcher, int], Any]) -> float:
    """Return the bytes that each of so many adds."""
    dispatcher = Dispatcher(Endless(), logging.getLogger("quiet"), cleanup_delay=3600)
    held = [asyncio.create_task(hook(dispatcher, users))]
    await asyncio.sleep(0.1)
    gc.collect()
    tracemalloc.start()
    added = [add(dispatcher, number) for number in range(users)]
    await asyncio.sleep(0.1)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held += [task for task in added if task is not None]
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await dispatcher.close()
    return used / users


async def main(users: int) -> None:
    def spawn(dispatcher: Dispatcher, number: int) -> Any:
        return asyncio.create_task(hook(dispatcher, number))

    def login(dispatcher: Dispatcher, number: int) -> None:
        dispatcher.prepare(
            Place(f"student{number}", f"/volumes/jupyterhub/student{number}", 1000, 100, "storage1")
        )

    def cleanup(dispatcher: Dispatcher, number: int) -> None:
        place = Place(f"student{number}", f"/volumes/jupyterhub/student{number}", 1000, 100, "storage1")
        dispatcher.cleanup(place, lambda: False)

    for what, add in (("spawn", spawn), ("login", login), ("clean-up", cleanup)):
        print(f"{what}: {await cost(users, add) / 1000:.2f} KB for each of {users}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
