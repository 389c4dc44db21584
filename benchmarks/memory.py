"""A hub that runs for weeks: its memory over 10,000 starts of 300 users' servers.

Each start and stop goes through the API of a real hub; the servers are one shared process. The same hub without
the hook is run beside it, for JupyterHub itself grows a little. After the first starts, when everything is loaded,
neither must grow with the number of starts.

    python -m benchmarks.memory                   writes benchmarks/results/memory.md
    python -m benchmarks.memory --users 10 --spawns 200 --every 50 --results /tmp/memory.md
    python -m benchmarks.memory --recheck always  every start is a run, shared with those who come meanwhile
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Final

import aiohttp

from benchmarks.course import make_course
from benchmarks.machine import describe
from benchmarks.storm.hub import Hub, end_with_everything

RESULTS: Final = Path(__file__).parent / "results" / "memory.md"
AT_ONCE: Final = 20
LATE_SECONDS: Final = 0.5


async def measure(hub: Hub, users: int, spawns: int, every: int) -> list[float]:
    """Return the hub's resident MiB at the beginning and after each ``every`` starts."""
    assert hub.process
    found = [_resident(hub.process.pid)]
    numbers = itertools.count()
    api = f"{hub.hub_url}/hub/api/users"

    async def student(first: int) -> None:
        """Start and stop one's servers, one after the other; each user belongs to one of those at work."""
        mine = itertools.cycle(range(first, users, AT_ONCE))
        while (number := next(numbers)) < spawns:
            server = f"{api}/student{next(mine):03}/server"
            for method in ("POST", "DELETE"):
                async with browser.request(method, server) as answer:
                    if answer.status >= 400:
                        raise SystemExit(f"{server}: {answer.status} {await answer.text()}")
                    late = answer.status == 202
                while late:  # It takes more than ten seconds, and the hub has answered before.
                    await asyncio.sleep(LATE_SECONDS)
                    async with browser.get(server.removesuffix("/server")) as answer:
                        late = bool((await answer.json())["pending"])
            if (number + 1) % every == 0 and hub.process:
                found.append(_resident(hub.process.pid))
                print(f"{number + 1} starts: {found[-1]:.1f} MiB", flush=True)

    headers = {"Authorization": f"token {hub.token}"}
    async with aiohttp.ClientSession(headers=headers) as browser:
        names = [f"student{number:03}" for number in range(users)]
        async with browser.post(api, json={"usernames": names}) as answer:
            answer.raise_for_status()
        async with asyncio.TaskGroup() as group:
            for first in range(min(AT_ONCE, users)):
                group.create_task(student(first))
    return found


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the hub has ended")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--spawns", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--variants", default="none,ours", type=lambda text: text.split(","))
    parser.add_argument("--recheck", choices=["changed", "always"], default="changed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    end_with_everything()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        workspace = Path(name)
        workspace.chmod(0o755)
        archive = make_course(workspace)
        for variant in args.variants:
            settings = {"recheck": args.recheck}
            hub = Hub(workspace / variant, variant, archive, tools=None, settings=settings)
            hub.start()
            try:
                print(f"{variant}:", flush=True)
                found[variant] = asyncio.run(measure(hub, args.users, args.spawns, args.every))
            finally:
                hub.end()
    steps = range(0, args.spawns + 1, args.every)
    warm = len(steps) // 5 or 1
    lines = [
        "# A hub that runs for weeks",
        "",
        f'{args.spawns} starts and stops by {args.users} users through the API, `recheck = "{args.recheck}"`; resident '
        "memory of the hub in MiB.",
        "",
        f"| starts | {' | '.join(found)} |",
        f"|---:|{'---:|' * len(found)}",
    ]
    lines += [
        f"| {step} | " + " | ".join(f"{values[place]:.1f}" for values in found.values()) + " |"
        for place, step in enumerate(steps)
    ]
    lines.append("")
    for variant, values in found.items():
        thousands = (len(values) - 1 - warm) * args.every / 1000
        growth = (values[-1] - values[warm]) / thousands if thousands else float("nan")
        lines.append(f"- {variant}: {growth:+.2f} MiB per 1,000 starts after the first {warm * args.every}")
    lines += ["", f"{describe('jupyterhub')}. Made by `python -m benchmarks.memory`."]
    args.results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
