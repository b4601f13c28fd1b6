"""Row 12: the rewriter with 32 prompts at once against one by one, on a local server that is running already."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AbstractContextManager, nullcontext

from benchmarks.catalogue import row
from benchmarks.harness import Row, paired
from rewriter import Rewriter
from rewriter.backends.base import Sampling
from rewriter.backends.server import ServerModel

PROMPTS = 32
PROMPT = "A woman in a café says ~~You came!~~ and the man says ~~Traffic.~~"
REPLY_SECONDS = 0.4
REAL_SERVER = "NAVA_REWRITER_URL"
TOKENS = 16  # of a reply of a real server, whose speed is compared and not its wit


def rewriter_part(budget: float) -> list[Row]:
    """On the server that NAVA_REWRITER_URL names; without it on a stand-in, which holds no model."""
    url = os.environ.get(REAL_SERVER, "")
    server = f"the server at {url}" if url else f"a STAND-IN server without a model, {REPLY_SECONDS} s a reply"
    with _stand_in() if not url else nullcontext(url) as address:
        at_once = asyncio.run(_seconds(address, PROMPTS, "Warm"))  # connections, and the system prompt in a cache
        takes = iter(range(1000))
        pairs = paired(
            lambda: _seconds(address, 1, f"Take {next(takes)}"),
            lambda: _seconds(address, PROMPTS, f"Shot {next(takes)}"),
            budget - at_once,
            at_most=3,
            cost=lambda action: asyncio.run(action()),
        )
    one_by_one, together = pairs.medians
    detail = {
        "summary": f"{one_by_one:.1f} s one by one, {together:.1f} s at once, by the clock, on {server}; its start "
        "is not counted, speech came back letter for letter",
        "server": url or "stand-in",
        "one_by_one_seconds": one_by_one,
        "at_once_seconds": together,
        "pairs": len(pairs.first),
    }
    return [row("rewriter", pairs.ratio, detail, pairs.spread)]


def _stand_in() -> AbstractContextManager[str]:
    from tests.rewriter_server import Behaviour, serving  # beside the tests, which share it

    return serving(Behaviour(seconds=REPLY_SECONDS, slots=PROMPTS))


async def _seconds(address: str, width: int, word: str) -> float:
    """For all prompts, of which `width` are asked at once."""
    is_real = bool(os.environ.get(REAL_SERVER))
    sampling = Sampling(max_tokens=TOKENS) if is_real else Sampling()
    rewriter = Rewriter(ServerModel(address, timeout=600.0, sampling=sampling), attempts=1)
    slots = asyncio.Semaphore(width)

    async def one(prompt: str) -> None:
        async with slots:
            result = await rewriter.rewrite(prompt)
        assert all(line in result.caption for line in ("You came!", "Traffic."))

    started = time.monotonic()
    try:
        await asyncio.gather(*(one(f"{PROMPT} {word} {number}.") for number in range(PROMPTS)))
    finally:
        await rewriter.aclose()
    return time.monotonic() - started
