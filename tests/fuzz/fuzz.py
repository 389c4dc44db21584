"""Throw bytes at what reads strangers' bytes: the request parser and the archive reader.

    make fuzz                                  a minute, all targets
    make fuzz ARGS="--seconds 600 archive"     one of them, longer
    python tests/fuzz/fuzz.py --try FILE archive

With atheris it is guided by coverage, without it bytes are changed blindly. On the first failure the bytes are
kept in ``tests/fuzz/crashes/`` and the exit status is 1; put them into a test before mending anything.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
CRASHES = HERE / "crashes"
sys.path.insert(0, str(HERE.parents[1]))


def main() -> int:
    """Run the targets one after the other; each has its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", help="request, archive (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the changes, without atheris")
    parser.add_argument("--blindly", action="store_true", help="without atheris even if it is there")
    parser.add_argument("--try", dest="file", type=Path, help="only try the bytes in this file")
    parser.add_argument("--guided", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.guided:
        return _guided(given.guided, given.seconds)

    from tests.fuzz.targets import TARGETS

    targets = given.targets or list(TARGETS)
    if not set(targets) <= set(TARGETS):
        parser.error(f"the targets are {', '.join(TARGETS)}")
    if given.file:
        for target in targets:
            TARGETS[target](given.file.read_bytes())
        return 0
    CRASHES.mkdir(exist_ok=True)
    with_coverage = importlib.util.find_spec("atheris") is not None and not given.blindly
    worst = 0
    for target in targets:
        seconds = given.seconds / len(targets)
        if with_coverage:
            command = [sys.executable, __file__, "--guided", target, "--seconds", str(seconds)]
            status = subprocess.run(command, check=False).returncode
        else:
            status = _blindly(target, seconds, given.seed)
        worst = max(worst, 1 if status else 0)
    return worst


def _blindly(target: str, seconds: float, seed: int | None) -> int:
    from tests.fuzz.targets import SEEDS, TARGETS, mutate

    seed = random.randrange(1 << 32) if seed is None else seed
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < until:
        data = mutate(rng.choice(SEEDS[target]), rng, SEEDS[target])
        tried += 1
        try:
            TARGETS[target](data)
        except Exception:
            traceback.print_exc()
            path = CRASHES / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"{target}: failed after {tried} tries (seed {seed}); the bytes are in {path}")
            return 1
    print(f"{target}: {tried} tries, seed {seed}: held")
    return 0


def _guided(target: str, seconds: float) -> int:
    import atheris

    with atheris.instrument_imports(
        include=["tarfile", "zipfile", "json", "ansible_bootstrap", "tests.fuzz"]
    ):
        from tests.fuzz.targets import SEEDS, TARGETS
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[target]):
            Path(corpus, str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-artifact_prefix={CRASHES}/{target}-",
            *("-max_len=65536", "-rss_limit_mb=2048", "-timeout=20", "-verbosity=0", "-print_final_stats=1"),
        ]
        atheris.Setup([sys.argv[0], corpus, *options], TARGETS[target])
        atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
