"""A short or English prompt -> the dense Chinese caption that NAVA was trained on, with every word of speech kept.

    rewriter = make_rewriter("auto")
    print(rewriter.rewrite_blocking("A sailor laughs: ~~Land ahoy!~~").caption)

Neither torch nor a model is loaded before a backend needs it.
"""

from rewriter.factory import BackendName, make_rewriter
from rewriter.results import (
    BackendUnavailable,
    RewriteCancelled,
    RewriteCounts,
    RewriteError,
    RewriteEvent,
    RewriteResult,
)
from rewriter.rewriter import Rewriter

__all__ = [
    "BackendName",
    "BackendUnavailable",
    "RewriteCancelled",
    "RewriteCounts",
    "RewriteError",
    "RewriteEvent",
    "RewriteResult",
    "Rewriter",
    "make_rewriter",
]
