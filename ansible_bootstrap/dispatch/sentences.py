"""What a student reads while they wait."""

from __future__ import annotations

from typing import Final

SENTENCES: Final = {
    "user_dir": "Preparing your directory",
    "mkhomedir": "Preparing your home directory",
    "tutorials": "Copying tutorials",
    "script": "Running the preparation script",
}
"""While a role is at work. A site role's name may mean nothing to them."""

SITE_SENTENCE: Final = "Making the last preparations"

AFTER_CLEANUP: Final = "Waiting for the clean-up after your last server"


def at_work(role: str, users: int) -> str:
    """Return what a role does, for so many users at once."""
    sentence = SENTENCES.get(role, SITE_SENTENCE)
    return f"{sentence}, with {_others(users - 1)}" if users > 1 else sentence


def behind(count: int) -> str:
    """Return that so many others come first."""
    return f"Waiting for {_others(count)}"


def _others(count: int) -> str:
    return "1 other" if count == 1 else f"{count} others"
