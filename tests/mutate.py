"""Change the sources of an area, one mutant at a time, and run that area's unit tests against each.

The operators are cosmic-ray's (ref: https://cosmic-ray.readthedocs.io). Mutants are made in a copy of the checkout,
which comes first on the path of the tests and of the processes that they start. A mutant is killed if a test fails, or
if the tests take three times as long as without it. A survivor is printed as a diff: a test is missing, or the mutant
changes nothing that matters, which a reader must judge. Left out are mutants of annotations, those that make an
order or an identity of an equality, and those that make a limit one more or less: hardly one of them matters.

    make mutate ARGS="places --seed 7 --minutes 5"
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = (".git", ".venv", ".demo", "__pycache__", ".*_cache", "*.sqlite")

# Too slow to run for each mutant: several processes at once, kills at every step, races.
SLOW = "another_process_forgets or several_processes or processes_that_read or killed_at or exchanged or chains or tracer"
HUB = (
    "adapting_batches apply_client bulk cleanups dispatcher due_cleanups fairness hanging left_out_roles logins pace "
    "run_log run_notices spare turnstile"
)
# By area: what is mutated, and the folders and names of the tests that shall notice. Those that name the mutated module
# are run first.
AREAS = {
    "ledger": ("ansible_bootstrap/state/ledger.py", "hub", "ledger"),
    "places": ("ansible_bootstrap/places/*.py", "hub", "places* identity detached person"),
    "dispatch": ("ansible_bootstrap/dispatch/*.py", "hub", HUB),
    "homes": ("plugins/module_utils/_homes.py", "storage", "homes"),
    "storage": ("plugins/module_utils/_*.py", "storage .", "*"),
}


def tree(source: str) -> str:
    """Return a source's syntax tree without its annotations; nothing if it is no program."""
    try:
        root = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(root):
        vars(node).update({name: None for name in ("annotation", "returns") if name in vars(node)})
    return ast.dump(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("area", choices=[*AREAS, "all"], nargs="?", default="all")
    parser.add_argument("--sample", type=int, default=60, help="most mutants of an area; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="which mutants")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no more are begun")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutate-") as directory:
        ignore = shutil.ignore_patterns(*NOT_COPIED)
        copy = shutil.copytree(ROOT, f"{directory}/checkout", symlinks=True, ignore=ignore)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = copy
        for area in AREAS if args.area == "all" else [args.area]:
            mutate(area, args.sample, random.Random(args.seed), args.minutes * 60)


def mutate(area: str, sample: int, chance: random.Random, seconds: float) -> None:
    """Print survivors and the score. The working directory is the copy."""
    sources, folders, names = AREAS[area]
    modules = [path for pattern in sources.split() for path in sorted(Path().glob(pattern))]
    patterns = [f"{folder}/test_{name}.py" for folder in folders.split() for name in names.split()]
    tests = [str(path) for pattern in patterns for path in Path("tests/unit").glob(pattern)]
    texts = {test: Path(test).read_text("utf-8") for test in tests}
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-k", f"not ({SLOW})"]
    command = shlex.join([*pytest, *tests])
    began = time.monotonic()
    outcome, output = run_tests(command, 600)
    if outcome != TestOutcome.SURVIVED:
        sys.exit(f"the tests fail without a mutant:\n{output}")
    limit = 3 * (time.monotonic() - began)
    with use_db("mutants.sqlite", WorkDB.Mode.create) as database:
        init(modules, database, {})
        found = [mutation for item in database.work_items for mutation in item.mutations]
    mutants = [mutant for mutant in found if not re.search(r"Eq_(Is|Lt|Gt)", mutant.operator_name)]
    mutants.sort(key=lambda mutant: (mutant.module_path, mutant.operator_name, mutant.occurrence))
    chance.shuffle(mutants)
    killed = late = tested = 0
    began = time.monotonic()
    for mutant in mutants:
        if (sample and tested == sample) or time.monotonic() - began > seconds:
            break
        source = mutant.module_path.read_text("utf-8")
        operator = get_operator(mutant.operator_name)(**mutant.operator_args)
        changed = mutate_code(source, operator, mutant.occurrence)
        (line, begin), (_, end) = mutant.start_pos, mutant.end_pos
        number = mutant.operator_name.endswith("NumberReplacer") and source.splitlines()[line - 1][begin:end]
        if number not in (False, "0", "1") or changed is None or tree(changed) in ("", tree(source)):
            continue
        mutant.module_path.write_text(changed, "utf-8")
        near = [test for test in tests if mutant.module_path.stem in texts[test] + test]
        for some in filter(None, (near, [test for test in tests if test not in near])):
            outcome, output = run_tests(shlex.join([*pytest, *some]), limit)
            if outcome == TestOutcome.KILLED:
                break
        mutant.module_path.write_text(source, "utf-8")
        tested += 1
        killed, late = killed + (outcome == TestOutcome.KILLED), late + (output == "timeout")
        if outcome != TestOutcome.KILLED:
            lines = (text.splitlines() for text in (source, changed))
            diff = difflib.unified_diff(*lines, str(mutant.module_path), n=1, lineterm="")
            print(f"\nSurvivor {tested - killed} of {tested} mutants:", *diff, sep="\n", flush=True)
    print(f"\n{area}: {killed} of {tested} mutants killed ({late} by time), of {len(mutants)} candidates")


if __name__ == "__main__":
    main()
