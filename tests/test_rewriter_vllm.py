"""The server backend against a real vLLM server, started by hand (docs/rewriter.md has the commands):

    NAVA_TEST_REWRITER_URL=http://127.0.0.1:8000/v1 pytest tests/test_rewriter_vllm.py -s

Whatever its model is worth, the wire must hold, and the speech. NAVA_TEST_REWRITER_TOKENS bounds a reply (256), so that
it takes minutes on a CPU too.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from contextlib import aclosing

import httpx
import pytest

from nava_core.speech import parse_speech
from rewriter import BackendUnavailable, RewriteCancelled, RewriteError, RewriteEvent, Rewriter, make_rewriter
from rewriter.backends.base import Sampling
from rewriter.backends.server import ServerModel

URL = os.environ.get("NAVA_TEST_REWRITER_URL", "")
TOKENS = int(os.environ.get("NAVA_TEST_REWRITER_TOKENS", "256"))
PROMPT = "A woman in a café says ~~You came!~~ and the man says ~~Traffic.~~"
SECONDS = 600.0  # without a sign of life: a CPU may be busy with something else

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not URL, reason="needs a real vLLM server: set NAVA_TEST_REWRITER_URL (docs/rewriter.md)"),
]


def make(tokens: int = TOKENS, attempts: int = 1) -> Rewriter:
    sampling = Sampling(max_tokens=tokens)
    return make_rewriter("vllm", base_url=URL, attempts=attempts, timeout=SECONDS, sampling=sampling)


def said(text: str) -> list[str]:
    return [span.text for span in parse_speech(text).spans]


def running() -> float:
    """Replies that the server is writing, by its own account."""
    text = httpx.get(f"{URL.removesuffix('/v1')}/metrics", timeout=60.0, trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_until_idle(seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while (busy := running()) and time.monotonic() < end:
        time.sleep(0.2)
    return not busy


def test_a_caption_with_the_speech_is_streamed() -> None:
    async def told() -> list[RewriteEvent]:
        rewriter = make(attempts=2)
        async with aclosing(rewriter.stream(PROMPT)) as events:
            found = [event async for event in events]
        await rewriter.aclose()
        return found

    events = asyncio.run(told())
    result = events[-1].result
    assert result is not None
    assert (result.backend, said(result.caption)) == ("vllm", said(PROMPT))
    assert sum(event.kind in ("text", "thinking") for event in events) > 5
    print(f"{result.outcome} after {result.attempts} replies: {result.notes}")


def test_the_wire_is_the_stand_ins() -> None:
    """What tests/rewriter_server.py imitates, looked at without our backend in between."""
    body = {
        "model": httpx.get(f"{URL}/models", timeout=60.0, trust_env=False).json()["data"][0]["id"],
        "messages": [{"role": "user", "content": "一间咖啡馆"}],
        "stream": True,
        "max_tokens": 24,
    }
    with httpx.stream("POST", f"{URL}/chat/completions", json=body, timeout=SECONDS, trust_env=False) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        parts = response.read().decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant"
    assert {key for choice in choices for key in choice["delta"]} <= {"role", "content", "reasoning"}
    assert [bool(choice["finish_reason"]) for choice in choices] == [False] * (len(choices) - 1) + [True]
    print(parts[0], parts[1], parts[-3], sep="\n")


def test_a_bound_beyond_the_context_is_left_to_the_server() -> None:
    model = ServerModel(URL, timeout=SECONDS, sampling=Sampling(max_tokens=1_000_000))

    async def begin() -> None:
        async with aclosing(model.reply([{"role": "user", "content": "你好"}], seed=1)) as chunks:
            async for chunk in chunks:
                assert chunk.kind != "restart"
                break
        await model.aclose()

    asyncio.run(begin())
    assert model._left_out == {"max_tokens"}


def test_what_it_refuses_is_said() -> None:
    with pytest.raises(BackendUnavailable, match=r"does not have the model nobody/none, but "):
        make_rewriter("vllm", base_url=URL, model="nobody/none")
    started = time.monotonic()
    with pytest.raises(RewriteError, match=r"refused the prompt \(400\): .*maximum context length"):
        make().rewrite_blocking("咖啡" * 100_000)
    assert time.monotonic() - started < SECONDS
    with pytest.raises(BackendUnavailable, match=r"no longer has the model nobody/none"):
        Rewriter(ServerModel(URL, "nobody/none")).rewrite_blocking(PROMPT)


def test_cancelling_ends_the_reply_on_the_server() -> None:
    assert wait_until_idle()
    rewriter, cancel = make(tokens=2000), threading.Event()

    def cancel_while_it_runs() -> None:
        end = time.monotonic() + SECONDS
        while not running() and time.monotonic() < end:
            time.sleep(0.1)
        cancel.set()

    threading.Thread(target=cancel_while_it_runs, daemon=True).start()
    with pytest.raises(RewriteCancelled):
        rewriter.rewrite_blocking(PROMPT, cancel)
    assert wait_until_idle()
    assert (rewriter.counts.total, rewriter.counts.failed) == (0, 0)


def test_thirty_two_at_once_are_three_times_as_fast_as_one_by_one() -> None:
    first, second = ([f"{PROMPT} {word} {number}." for number in range(32)] for word in ("Take", "Shot"))

    async def both(rewriter: Rewriter) -> tuple[float, float]:
        # The system prompt is in the server's cache from here on, for both; the prompts themselves for neither.
        await rewriter.rewrite(PROMPT)
        started = time.monotonic()
        results = await asyncio.gather(*map(rewriter.rewrite, first))
        together = time.monotonic() - started
        results += [await rewriter.rewrite(prompt) for prompt in second]
        one_by_one = time.monotonic() - started - together
        await rewriter.aclose()
        assert all(said(result.caption) == said(PROMPT) for result in results)
        return together, one_by_one

    rewriter = make()
    together, one_by_one = asyncio.run(both(rewriter))
    print(
        f"{rewriter.label}, at most {TOKENS} tokens a reply: 32 prompts in {one_by_one:.1f} s one by one, "
        f"{together:.1f} s at once: {one_by_one / together:.1f} times as fast; {rewriter.counts}"
    )
    assert one_by_one > 3 * together
