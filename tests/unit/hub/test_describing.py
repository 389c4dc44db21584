"""Which fingerprints a complete user must have: what an apply program behind a boundary may answer, and how it may end."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.describing import ask_fingerprints
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError, SettingsError
from ansible_bootstrap.protocol import RoleFingerprint

ROLE = RoleFingerprint(role="user_dir", fingerprint="1", revised=True)
DESCRIBED = '{"event": "described", "roles": [{"role": "user_dir", "fingerprint": "1", "revised": true}]}'


async def asked(tmp_path: Path, *lines: str, status: int = 0) -> tuple[RoleFingerprint, ...]:
    """Ask an apply program that says these lines."""
    script = tmp_path / "apply.py"
    script.write_text(f"import sys; input(); print({chr(10).join(lines)!r}); sys.exit({status})")
    config = AnsibleBootstrap(config=Config({"AnsibleBootstrap": {"apply_command": ["/bin/true"]}}))

    async def argv() -> list[str]:
        return [sys.executable, "-S", str(script)]

    return await ask_fingerprints(config, ApplyClient(argv, logging.getLogger(__name__)), 30)


async def test_the_answer_counts_however_the_program_ends(tmp_path: Path) -> None:
    assert await asked(tmp_path, DESCRIBED) == (ROLE,)
    assert await asked(tmp_path, DESCRIBED, status=3) == (ROLE,)
    assert await asked(tmp_path, DESCRIBED, "and a banner") == (ROLE,)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['{"event": "end", "run": "r", "ok": 0, "failed": 0}'], ApplyError),
        ([], ApplyError),
        (['{"event": "refused", "reason": "settings", "message": "no roles"}'], SettingsError),
    ],
    ids=["end", "nothing", "refused"],
)
async def test_no_answer_is_an_error_and_not_an_answer(
    tmp_path: Path, lines: list[str], error: type[AnsibleBootstrapError]
) -> None:
    with pytest.raises(error):
        await asked(tmp_path, *lines)
