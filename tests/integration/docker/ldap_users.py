"""Who is in the directory service; none of them has an account on the machine."""

from __future__ import annotations

USERS = ("lovelace", "emmy.noether", "franklin")
EARLY = "earlybird"
"""Whose server was started before the hook was there."""
DOTTED = "von.neumann"
"""Whose server was started with the hook of JupyterHub's page."""
