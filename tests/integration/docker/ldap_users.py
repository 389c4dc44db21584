"""The users in the directory service; none has an account on the machine."""

from __future__ import annotations

USERS = ("lovelace", "emmy.noether", "franklin")
EARLY = "earlybird"
"""The user whose server was started before the hook was there."""
DOTTED = "von.neumann"
"""The user whose server was started with the hook of JupyterHub's page."""
