"""Captions composed by rule, without any model: see `rewriter.offline.composer`."""

from rewriter.offline.composer import compose_caption, understand

__all__ = ["compose_caption", "understand"]
