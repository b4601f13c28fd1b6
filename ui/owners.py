"""Whose a request from a browser is: users' jobs, clips and voices are apart when they log in."""

from __future__ import annotations

import gradio as gr


def owner_of(request: gr.Request | None) -> str:
    """The name that the person logged in with; "" where nobody has to."""
    return (request.username if request is not None else None) or ""
