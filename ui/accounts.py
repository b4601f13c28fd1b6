"""Who may come in: the names and passwords that the app was started with."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

MAX_NAME = 64
# Guessing gets no quicker than this; a person who mistyped hardly notices.
REFUSAL_SECONDS = 1.0


class Accounts:
    """Names and passwords. Neither printing nor logging this shows a password.

    Besides the people there is one account of the app's own, `courier`: under it Gradio's MCP server reads the app's
    own description, where everything else is asked in the name of whoever called.
    """

    courier = "(courier)"

    def __init__(self, passwords: dict[str, str]):
        self._digests = {name: _digest(password) for name, password in passwords.items()}
        self.courier_password = secrets.token_urlsafe(32)

    @classmethod
    def read(cls, given: Iterable[str], file: Path | None = None) -> Accounts:
        """From USER:PASSWORD, and from a file with one of them on a line (empty lines and lines with # are left out).

        Raises ValueError, whose words never repeat what was given beyond the user's name.
        """
        lines = [(f"--auth number {number}", line) for number, line in enumerate(given, start=1)]
        if file is not None:
            lines += [(f"{file}, line {number}", line) for number, line in _lines(file)]
        passwords: dict[str, str] = {}
        for where, line in lines:
            name, password = _account(where, line)
            if name in passwords:
                raise ValueError(f"{where}: {name} has a password already; give each user once")
            passwords[name] = password
        if not passwords:
            raise ValueError(f"{file} holds no account; write USER:PASSWORD, one on a line")
        return cls(passwords)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._digests)

    def check(self, name: str, password: str) -> bool:
        """Whether this is the user's password; takes as long for a user who is not there."""
        if name == self.courier:
            known = _digest(self.courier_password)
        else:
            known = self._digests.get(name, _digest(self.courier_password))
        return hmac.compare_digest(_digest(password), known) and (name in self._digests or name == self.courier)

    async def login(self, name: str, password: str) -> bool:
        """`check` for Gradio's login page; answers late where it refuses."""
        if self.check(name, password):
            return True
        await asyncio.sleep(REFUSAL_SECONDS)
        return False


def _account(where: str, line: str) -> tuple[str, str]:
    name, colon, password = line.partition(":")
    name = name.strip()  # the login page does so too
    if not colon or not name or not password:
        raise ValueError(f"{where} is no account; write USER:PASSWORD, with a colon and neither of them empty")
    if len(name) > MAX_NAME or not name.isprintable() or name.startswith("("):
        raise ValueError(
            f"{where}: this user's name cannot be used; take up to {MAX_NAME} letters, and no bracket in front"
        )
    return name, password


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({type(error).__name__}); give a text file") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [(number, line) for number, line in numbered if line.strip() and not line.lstrip().startswith("#")]


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()
