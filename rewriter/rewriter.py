"""A prompt -> lock its speech -> ask for a caption -> check, repair or ask again -> put the speech back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

from rewriter.backends.base import LanguageModel
from rewriter.locking import LockedPrompt, lock
from rewriter.messages import make_messages
from rewriter.offline import compose_caption
from rewriter.replies import History, Reply
from rewriter.results import RewriteCancelled, RewriteCounts, RewriteEvent, RewriteResult, Tally

logger = logging.getLogger(__name__)

OFFLINE = "offline"
OFFLINE_LABEL = "offline composer (rules, no language model)"
ATTEMPTS = 3
LONGEST_REPLY = 200_000
"""Letters, thinking included, after which a reply is cut off as a runaway."""
_WATCH_SECONDS = 0.1


class Rewriter:
    """Rewrites prompts into dense captions in which the speech is letter for letter the prompt's.

    model: the language model to ask; None composes by rule. attempts: replies asked for at most, 1 or more. May be used
    from several threads and event loops at once.
    """

    def __init__(self, model: LanguageModel | None = None, attempts: int = ATTEMPTS) -> None:
        if attempts < 1:
            raise ValueError(f"attempts is {attempts}; at least 1 reply has to be asked for")
        self.model = model
        self._attempts = attempts
        self._tally = Tally()

    @property
    def backend(self) -> str:
        """ "vllm", "transformers" or "offline"."""
        return self.model.name if self.model else OFFLINE

    @property
    def label(self) -> str:
        """The backend in words for a person."""
        return self.model.label if self.model else OFFLINE_LABEL

    @property
    def concurrency(self) -> int:
        """How many prompts it is worth rewriting at once."""
        return self.model.concurrency if self.model else 1

    @property
    def counts(self) -> RewriteCounts:
        """How the prompts so far ended."""
        return self._tally.counts

    async def stream(self, prompt: str) -> AsyncGenerator[RewriteEvent, None]:
        """Rewrite `prompt`, telling how it goes; the last event has the result. Closing the generator stops the model.

        Raises ValueError for an empty prompt, RewriteError where the backend fails.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; describe a scene, with speech as ~~line~~")
        locked = lock(prompt)
        try:
            if self.model is None:
                caption, notes = compose_caption(locked)
                result = RewriteResult(prompt, caption, OFFLINE, "composed", 0, notes)
            else:
                async with aclosing(self._ask(self.model, locked)) as events:
                    async for event in events:
                        if event.result is not None:
                            result = event.result
                        else:
                            yield event
        except Exception:  # not when somebody stops it
            self._tally.add_failure()
            raise
        self._tally.add(result)
        yield RewriteEvent("done", result.caption, result)

    async def rewrite(self, prompt: str) -> RewriteResult:
        """The caption of `prompt`. Raises ValueError for an empty prompt, RewriteError where the backend fails."""
        async with aclosing(self.stream(prompt)) as events:
            async for event in events:
                if event.result is not None:
                    return event.result
        raise AssertionError("a stream ends with its result")

    def rewrite_blocking(self, prompt: str, cancel: threading.Event | None = None) -> RewriteResult:
        """`rewrite` for code without an event loop. Raises RewriteCancelled soon after `cancel` is set."""
        return asyncio.run(self._rewrite_until(prompt, cancel or threading.Event()))

    async def aclose(self) -> None:
        """Close connections that belong to the running event loop."""
        if self.model:
            await self.model.aclose()

    def park(self) -> None:
        """Take the model off the GPU, to make room for a clip. Waits for a reply that is being written."""
        if self.model:
            self.model.park()

    def resume(self) -> None:
        """Undo `park` now; otherwise the next prompt does."""
        if self.model:
            self.model.resume()

    async def _rewrite_until(self, prompt: str, cancel: threading.Event) -> RewriteResult:
        task = asyncio.create_task(self.rewrite(prompt))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_WATCH_SECONDS)
                if cancel.is_set() and not task.done():
                    task.cancel()
                    await asyncio.wait({task})
                    raise RewriteCancelled("rewriting was cancelled; the prompt is as it was")
            return task.result()
        finally:
            await self.aclose()

    async def _ask(self, model: LanguageModel, locked: LockedPrompt) -> AsyncGenerator[RewriteEvent, None]:
        """Ask until a reply is good, as often as allowed, and make the best of what came."""
        history = History(locked, model.name)
        for attempt in range(1, self._attempts + 1):
            reply = Reply(locked, model.thinking_opened)
            messages = make_messages(locked, history.hints)
            async with aclosing(model.reply(messages, seed=attempt)) as chunks:
                async for chunk in chunks:
                    for event in reply.take(chunk):
                        yield event
                    if reply.length > LONGEST_REPLY:
                        reply.cut = True
                        break
            history.judge(reply)
            if history.settled or attempt == self._attempts:
                yield RewriteEvent("done", result=history.result())
                return
            logger.info("reply %d of %d is not used: %s", attempt, self._attempts, history.problem)
            yield RewriteEvent("retry", history.problem)
