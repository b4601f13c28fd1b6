"""The doors of the app's server: who comes in, and which files go out.

Gradio asks for a login and serves `/gradio_api/file=PATH` from its cache and from folders that are named at the start;
it does not know whose a file is, and its MCP server asks nobody. `Doors` stands in front of it and does both.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.responses import JSONResponse
from gradio_client import Client
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from nava_core.engine.jobs import DATABASE, Engine
from ui.accounts import Accounts
from ui.owners import caller

logger = logging.getLogger(__name__)

Owns = Callable[[str, Path], bool]
"""Whether a file in the folder of clips is this owner's."""

FILE = re.compile(r"/gradio_api/file[=/](.*)\Z", re.DOTALL)
MCP = re.compile(r"/gradio_api/mcp(?:/|\Z)")
# What the page shows out of its folder for private matters; the databases, and what waits for deletion, stay inside.
SHOWN = ("posters", "exports", "frames")
CHALLENGE = {"WWW-Authenticate": 'Basic realm="NAVA Studio", charset="UTF-8"'}


class Doors:
    """ASGI middleware of a Gradio app.

    With accounts, `Authorization: Basic` logs a request in, as the login page's cookie does (for curl and for MCP
    clients), and a file under `output_dir` goes only to its owner. Nothing is fetched from elsewhere for anybody, and
    nothing private of the folder is ever served. A refusal does not tell whether there is such a file.
    """

    def __init__(self, app: ASGIApp, output_dir: Path, accounts: Accounts | None = None, owns: Sequence[Owns] = ()):
        self._app = app
        self._output_dir = output_dir.resolve()
        self._accounts = accounts
        self._owns = owns
        self._tokens: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        refusal = await self._refusal(scope)
        return await (self._app if refusal is None else refusal)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        if self._accounts is not None and not await self._log_in(scope, self._accounts):
            return JSONResponse({"detail": "Wrong user or password."}, 401, CHALLENGE)
        user = ""
        if self._accounts is not None:
            user = await caller(Request(scope))
        path = scope["path"]
        if self._accounts is not None and not user and MCP.search(path):
            return JSONResponse({"detail": "Not authenticated"}, 401, CHALLENGE)
        if (named := FILE.search(path)) and not await asyncio.to_thread(self._may_have, user, named[1]):
            return JSONResponse({"detail": f"File not allowed: {named[1]}."}, 403)
        return None

    async def _log_in(self, scope: Scope, accounts: Accounts) -> bool:
        """Turn a password in the request's head into the cookie that Gradio asks for; False for a wrong one."""
        header = Request(scope).headers.get("authorization", "")
        if not header.lower().startswith("basic "):
            return True
        name, password = _basic(header)
        if not await accounts.login(name, password):
            logger.warning("a request with a wrong user or password was refused")
            return False
        app = scope["app"]
        token = self._tokens.setdefault(name, secrets.token_urlsafe(32))
        app.tokens[token] = name
        # As the only cookie: whoever sends a password means that user, whatever a browser's cookie says.
        headers = [(key, value) for key, value in scope["headers"] if key != b"cookie"]
        scope["headers"] = [*headers, (b"cookie", f"access-token-unsecure-{app.cookie_id}={token}".encode())]
        return True

    def _may_have(self, user: str, named: str) -> bool:
        """Whether this may go on to Gradio, which serves its cache and the named folders and nothing else."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", named):
            return False  # an address: this server fetches nothing for anybody
        try:
            path = Path(named).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        if not path.is_relative_to(self._output_dir):
            return True
        inside = path.relative_to(self._output_dir).parts
        private = inside[:1] == (DATABASE.parts[0],)
        if private and (len(inside) < 3 or inside[1] not in SHOWN):
            return False
        if any(part.startswith(".") for part in inside[1 if private else 0 :]):
            return False
        return self._accounts is None or any(owns(user, path) for owns in self._owns)


def clips_of(engine: Engine) -> Owns:
    """Whose a clip is, from the jobs that the engine remembers."""

    def owns(owner: str, path: Path) -> bool:
        made = (job.result for job in engine.jobs() if job.owner == owner and job.result is not None)
        return any(clip.name == path.name and clip.resolve() == path for clip in made)

    return owns


def open_for_mcp(demo: gr.Blocks, url: str, accounts: Accounts) -> None:
    """Let Gradio's MCP server through its own login, which it has no password for.

    It calls the app over HTTP with the cookie of whoever called it; only to read the app's description, and to listen
    to what it started, it comes as the courier.
    """
    server: Any = demo.mcp_server_obj
    if server is not None:
        server._client_instance = Client(
            url,
            auth=(accounts.courier, accounts.courier_password),
            headers={"x-gradio-user": "mcp"},
            download_files=False,
            verbose=False,
            analytics_enabled=False,
            ssl_verify=False,
            _skip_components=False,
        )


def _basic(header: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(header[6:].strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name.strip(), password
