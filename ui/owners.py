"""Whose a request from a browser is: users' jobs, clips and voices are apart when they log in."""

from __future__ import annotations

import inspect

import fastapi
import gradio as gr


def owner_of(request: gr.Request | None) -> str:
    """The name that the person logged in with; "" where nobody has to."""
    return (request.username if request is not None else None) or ""


async def caller(request: fastapi.Request) -> str:
    """`owner_of` for a component's server functions, which Gradio hands the bare request.

    It answers those only to people who are logged in, where anybody has to; here is asked who.
    """
    app = request.app
    if app.auth_dependency is not None:
        user = app.auth_dependency(request)
        return (await user if inspect.isawaitable(user) else user) or ""
    if app.auth is None:
        return ""
    cookies = (request.cookies.get(f"access-token-{kind}{app.cookie_id}") for kind in ("", "unsecure-"))
    return next((app.tokens[token] for token in cookies if token in app.tokens), "")
