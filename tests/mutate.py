"""Mutate one area of the sources, a mutant at a time, and run that area's unit tests against each.

The operators are cosmic-ray's (ref: https://cosmic-ray.readthedocs.io). Everything happens in a copy of the checkout,
with one virtual environment for all: the copy comes first on its path. A mutant is killed if a test fails or the tests
take three times as long as without one. Each mutant that survives is printed as a diff: either a test is missing, or
the mutant is equivalent, which a reader must judge.

    make mutate                                    what there is
    make mutate ARGS="ledger"                      60 mutants of the ledger
    make mutate ARGS="homes --sample 0"            all of them
    make mutate ARGS="places --seed 7 --minutes 5" others, for five minutes at most
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cosmic_ray.commands
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT = Path(__file__).resolve().parents[1]
HUB, STORAGE = "tests/unit/hub/test_", "tests/unit/storage/test_"
PACKAGE, FILES = "ansible_bootstrap/", "plugins/module_utils/_"

AREAS: dict[str, tuple[list[str], list[str]]] = {
    "ledger": ([f"{PACKAGE}state/ledger.py"], [f"{HUB}ledger.py"]),
    "state": ([f"{PACKAGE}state"], [f"{HUB}{n}.py" for n in STATE]),
}
