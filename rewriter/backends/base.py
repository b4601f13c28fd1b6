"""What a language model is to the rewriter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from rewriter.messages import Message

DEFAULT_MODEL = "Qwen/Qwen3-4B-Thinking-2507"


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. max_tokens bounds the thinking and the caption together."""

    temperature: float = 0.3
    top_p: float = 0.75
    top_k: int = 20
    repetition_penalty: float = 1.05
    max_tokens: int = 8192


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply.

    "reasoning" is thinking that came apart from the text; "text" may hold thinking between marks; "restart" voids what
    came before; "end" closes the reply, and its text is why ("stop", "length").
    """

    kind: Literal["reasoning", "text", "restart", "end"]
    text: str = ""


class LanguageModel(Protocol):
    """Something that replies to a chat. concurrency: how many replies it can usefully write at once."""

    name: str
    concurrency: int

    @property
    def label(self) -> str:
        """What to call it before a person."""

    @property
    def thinking_opened(self) -> bool:
        """Whether its chat template opens the thinking, so that a reply begins inside it."""

    def reply(self, messages: list[Message], seed: int) -> AsyncGenerator[Chunk, None]:
        """Stream one reply; closing the generator stops the model. Raises RewriteError."""

    async def aclose(self) -> None:
        """Let go of what belongs to the running event loop."""

    def park(self) -> None:
        """Free the GPU until `resume`, or the next reply."""

    def resume(self) -> None:
        """Undo `park`."""
