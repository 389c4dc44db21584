"""Say what is wrong with a hub's bootstrap before a student finds out: what ``ansible-bootstrap doctor`` prints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from rich.console import Console

from ansible_bootstrap.cli.checks import CHECKS, Site, Users
from ansible_bootstrap.cli.report import LISTED, print_json, safe
from ansible_bootstrap.cli.roster import shown
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.protocol import Finding
from ansible_bootstrap.state.moves import where


def examine(load: Callable[[], AnsibleBootstrap], users: Users, *, as_json: bool) -> int:
    """Make all checks, print what they find, and return the exit status: 0 nothing, 1 warnings, 2 errors.

    Args:
        load: reads the configuration.
        users: returns the records of the users who were asked for; may raise, as a hub that does not answer.
        as_json: print one object with ``findings``, ``users`` and ``about``.
    """
    console = Console(highlight=False, soft_wrap=True, quiet=as_json)
    findings: list[tuple[str, Finding]] = []
    site: Site | None = None
    AnsibleBootstrap.set_up = False
    try:
        site = Site(load(), users)
    except AnsibleBootstrapError as error:
        findings.append(("configuration", Finding(level="error", what=error.details or error.message)))
    else:
        asyncio.run(_check(site, findings, console))
    places = site.places if site else []
    if as_json:
        print_json(
            {
                "findings": [{"check": name, **finding.model_dump()} for name, finding in findings],
                "users": [vars(place) for place in places],
                "about": site.about if site else {},
            }
        )
    for place in places[:LISTED]:
        console.print(f"         {safe(shown(place.name))}: {safe(where(place))}")
    if places[LISTED:]:
        console.print(f"         … and {len(places[LISTED:])} more: --json has all")
    for name, finding in findings:
        console.print(f"{_coloured(finding.level)} {name}: {safe(finding.what)}")
        if finding.mend:
            console.print(f"         → {safe(finding.mend)}")
    return {"ok": 0, "warning": 1, "error": 2}[_worst(findings)]


async def _check(site: Site, findings: list[tuple[str, Finding]], console: Console) -> None:
    for name, check in CHECKS.items():
        if name in site.skipped:
            console.print(f"skipped  {name}")
            continue
        begin = len(findings)
        try:
            found = check(site)
            if isinstance(found, AsyncIterator):
                async for finding in found:
                    findings.append((name, finding))
            else:
                findings.extend((name, finding) for finding in found)
        except Exception as error:  # What goes wrong in one check is a finding, and the others go on.
            said = error.details if isinstance(error, AnsibleBootstrapError) else ""
            findings.append((name, Finding(level="error", what=said or f"{type(error).__name__}: {error}")))
        console.print(f"{_coloured(_worst(findings[begin:]))} {name}")
    await site.client.gone()


def _worst(findings: Sequence[tuple[str, Finding]]) -> str:
    levels = {finding.level for _, finding in findings}
    return next((level for level in ("error", "warning") if level in levels), "ok")


def _coloured(level: str) -> str:
    return f"[{ {'ok': 'green', 'warning': 'yellow', 'error': 'red'}[level] }]{level:<8}[/]"
