"""Asks for ``/hub/health`` every 20 ms on one connection, from a process of its own, until SIGTERM ends it.

    python -m benchmarks.storm.health HOST:PORT FILE

Each line of the file: when the request was sent (``time.monotonic``), and the milliseconds to the answer. No handler
turns the signal into an exception: one that is raised while an answer is finalized is lost, and this went on for ever.
"""

from __future__ import annotations

import http.client
import sys
import time
from pathlib import Path
from typing import Final

INTERVAL: Final = 0.02


def main() -> None:
    address, file = sys.argv[1:]
    connection = http.client.HTTPConnection(address, timeout=300)
    with Path(file).open("w", buffering=1) as out:
        while True:
            begin = time.monotonic()
            connection.request("GET", "/hub/health")
            answer = connection.getresponse()
            answer.read()
            end = time.monotonic()
            if answer.status == 200:
                out.write(f"{begin:.4f} {(end - begin) * 1000:.3f}\n")
            time.sleep(max(0.0, INTERVAL - (end - begin)))


def latencies(file: Path) -> list[float]:
    """Return the milliseconds that somebody who asks at any time has to wait.

    While one request hangs for a second, the 49 that would have been sent meanwhile are not; they are put in with
    what they would have waited, or a hub that stands still would look good.
    Source: ``recordValueWithExpectedInterval`` of HdrHistogram.
    """
    found: list[float] = []
    for line in file.read_text().splitlines():
        waited = float(line.split()[1])
        while waited > 0:
            found.append(waited)
            waited -= INTERVAL * 1000
            if waited < INTERVAL * 1000:
                break
    return sorted(found)


if __name__ == "__main__":
    main()
