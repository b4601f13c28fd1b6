"""The server backend against a real HTTP server with vLLM's protocol (see rewriter_server.py for what it is not)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from rewriter_server import DESCRIPTION, MODEL, Behaviour, obedient, serving

from nava_core.speech import parse_speech
from rewriter import BackendUnavailable, RewriteCancelled, RewriteError, RewriteEvent, Rewriter, make_rewriter
from rewriter.backends.server import ServerModel

ROOT = Path(__file__).parent.parent
PROMPT = "A woman in a café says ~~You came!~~ and the man says ~~Traffic.~~"


def rewriter_at(url: str, **options: object) -> Rewriter:
    return Rewriter(ServerModel(url, **{"wait": 0.01, "timeout": 20.0, **options}))  # type: ignore[arg-type]


def said(text: str) -> list[str]:
    return [span.text for span in parse_speech(text).spans]


async def events_of(rewriter: Rewriter, prompt: str) -> list[RewriteEvent]:
    try:
        async with aclosing(rewriter.stream(prompt)) as events:
            return [event async for event in events]
    finally:
        await rewriter.aclose()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", None])
def test_a_reply_is_streamed_with_its_thinking_apart(field: str | None) -> None:
    thinking = "好的，用户想要……" if field else "<think>好的，用户想要……</think>\n\n"
    with serving(Behaviour(thinking=thinking, thinking_field=field)) as url:
        events = asyncio.run(events_of(rewriter_at(url), PROMPT))
    result = events[-1].result
    assert result is not None
    assert (result.backend, result.outcome, result.attempts) == ("vllm", "as is", 1)
    assert said(result.caption) == ["You came!", "Traffic."]
    assert "好的，用户" in "".join(event.text for event in events if event.kind == "thinking")
    shown = "".join(event.text for event in events if event.kind == "text").strip()
    assert shown == result.caption == DESCRIPTION.format(speech="她轻声说：~~You came!~~。她轻声说：~~Traffic.~~。")
    assert sum(event.kind == "text" for event in events) > 5


def test_the_request_has_the_settings_and_never_the_speech() -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        rewriter_at(url).rewrite_blocking(PROMPT)
    (request,) = behaviour.requests
    assert request["model"] == MODEL
    assert (request["temperature"], request["top_p"], request["top_k"]) == (0.3, 0.75, 20)
    assert request["repetition_penalty"] == 1.05
    sent = "".join(message["content"] for message in request["messages"])
    assert "【台词1】" in sent
    assert "You came" not in sent
    assert "Traffic" not in sent


@pytest.mark.parametrize("failure", [429, 500, 503, "cut", "error", "half", "garbage"])
def test_a_failing_server_is_asked_again(failure: object) -> None:
    behaviour = Behaviour(failures=[failure, failure])
    with serving(behaviour) as url:
        events = asyncio.run(events_of(rewriter_at(url), PROMPT))
    assert events[-1].result is not None
    assert (events[-1].result.outcome, events[-1].result.attempts) == ("as is", 1)
    assert sum(event.kind == "retry" for event in events) == 2
    assert len(behaviour.requests) == 3


def test_the_server_says_how_long_to_wait() -> None:
    with serving(Behaviour(failures=[429], retry_after="0.5")) as url:
        started = time.monotonic()
        rewriter_at(url).rewrite_blocking(PROMPT)
    assert time.monotonic() - started >= 0.5


def test_a_server_that_keeps_failing_is_an_error() -> None:
    with serving(Behaviour(failures=[500] * 9)) as url:
        rewriter = rewriter_at(url, tries=3)
        with pytest.raises(RewriteError, match=r"answered 500 .*3 times"):
            rewriter.rewrite_blocking(PROMPT)
    assert rewriter.counts.failed == 1


def test_a_refused_prompt_is_not_asked_again() -> None:
    behaviour = Behaviour(failures=[400])
    with serving(behaviour) as url, pytest.raises(RewriteError, match=r"refused the prompt \(400\): .*as told"):
        rewriter_at(url).rewrite_blocking(PROMPT)
    assert len(behaviour.requests) == 1


def test_a_server_that_says_nothing_runs_into_the_timeout() -> None:
    with serving(Behaviour(seconds=60, stream=False)) as url:
        rewriter = rewriter_at(url, timeout=0.3, tries=2)
        with pytest.raises(BackendUnavailable, match="no answer from the rewriting server"):
            rewriter.rewrite_blocking(PROMPT)


def test_no_server_says_what_to_start() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(BackendUnavailable, match=r"no answer .*scripts/start_rewriter\.sh.*--base-url"):
            make_rewriter("vllm", base_url=url)
        with pytest.raises(BackendUnavailable, match=r"scripts/start_rewriter\.sh"):
            rewriter_at(url, tries=2).rewrite_blocking(PROMPT)


def test_another_kind_of_server_is_named_as_such() -> None:
    with serving(Behaviour()) as url, pytest.raises(BackendUnavailable, match="is no OpenAI-compatible server"):
        make_rewriter("vllm", base_url=url.replace("/v1", "/other"))


def test_a_model_the_server_does_not_have() -> None:
    with serving(Behaviour()) as url, pytest.raises(BackendUnavailable, match=f"does not have .* but {MODEL}"):
        make_rewriter("vllm", base_url=url, model="another")


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Behaviour(key="secret")) as url:
        with pytest.raises(BackendUnavailable, match="NAVA_REWRITER_API_KEY"):
            make_rewriter("vllm", base_url=url)
        monkeypatch.setenv("NAVA_REWRITER_API_KEY", "secret")
        assert make_rewriter("vllm", base_url=url).backend == "vllm"


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://a\nb", "http://[::1", "http://a:b"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="give one like http"):
        ServerModel(url or "no address")


def test_an_address_without_a_path_gets_one() -> None:
    assert ServerModel("http://host:8000/").base_url == "http://host:8000/v1"
    assert ServerModel("http://host:8000/api/v3").base_url == "http://host:8000/api/v3"


def test_a_strict_server_gets_only_what_it_knows() -> None:
    behaviour = Behaviour(strict=True)
    with serving(behaviour) as url:
        rewriter = rewriter_at(url)
        for _ in range(2):
            assert rewriter.rewrite_blocking(PROMPT).outcome == "as is"
    known = [("top_k" in request, "repetition_penalty" in request) for request in behaviour.requests]
    assert known == [(True, True), (True, False), (False, False), (False, False)]


def test_a_server_with_a_small_context_sets_its_own_bound() -> None:
    behaviour = Behaviour(context=2048)
    with serving(behaviour) as url:
        assert rewriter_at(url).rewrite_blocking(PROMPT).outcome == "as is"
    assert ["max_tokens" in request for request in behaviour.requests] == [True, False]


def test_a_prompt_beyond_the_context_leaves_the_others_their_bound() -> None:
    behaviour = Behaviour(context=10_000)
    with serving(behaviour) as url:
        rewriter = rewriter_at(url)
        with pytest.raises(RewriteError, match=r"refused the prompt \(400\): .*maximum context length"):
            rewriter.rewrite_blocking("咖啡" * 10_000)
        assert rewriter.rewrite_blocking(PROMPT).outcome == "as is"
    assert behaviour.requests[-1]["max_tokens"] == 8192


def test_a_model_that_has_gone() -> None:
    with serving(Behaviour()) as url, pytest.raises(BackendUnavailable, match="no longer has the model another"):
        rewriter_at(url, model="another").rewrite_blocking(PROMPT)


@pytest.mark.parametrize(("finish", "outcome"), [("", "as is"), ("length", "composed")])
def test_how_a_reply_ends(finish: str, outcome: str) -> None:
    """Some servers do not say why a reply ends; one that ran out of tokens is half a caption, and never used."""
    with serving(Behaviour(finish=finish)) as url:
        assert rewriter_at(url).rewrite_blocking(PROMPT).outcome == outcome


def test_line_ends_of_unicode_within_a_reply() -> None:
    with serving(Behaviour(reply=lambda messages: obedient(messages).replace("，", "，\u2028\x85"))) as url:
        result = rewriter_at(url).rewrite_blocking(PROMPT)
    assert (result.outcome, result.attempts) == ("repaired", 1)
    assert said(result.caption) == ["You came!", "Traffic."]


def test_a_server_that_does_not_stream() -> None:
    with serving(Behaviour(stream=False)) as url:
        assert rewriter_at(url).rewrite_blocking(PROMPT).outcome == "as is"


def test_a_poor_reply_is_asked_again_with_what_was_wrong() -> None:
    replies = iter(
        [DESCRIPTION.format(speech="她说：【台词2】。"), DESCRIPTION.format(speech="她说：【台词1】，【台词2】。")]
    )
    behaviour = Behaviour(reply=lambda messages: next(replies))
    with serving(behaviour) as url:
        rewriter = rewriter_at(url)
        result = rewriter.rewrite_blocking(PROMPT)
    assert (result.outcome, result.attempts) == ("retried", 2)
    assert "缺少占位符【台词1】" in behaviour.requests[1]["messages"][-1]["content"]
    assert rewriter.counts.retried == 1


def test_replies_that_stay_poor_end_in_a_composed_caption() -> None:
    with serving(Behaviour(reply=lambda messages: DESCRIPTION.format(speech=""))) as url:
        result = rewriter_at(url).rewrite_blocking(PROMPT)
    assert (result.outcome, result.attempts) == ("composed", 3)
    assert result.caption.startswith("写实电影风格")
    assert result.caption.endswith("画面中的人物依次说：~~You came!~~，~~Traffic.~~。")


def test_half_a_surrogate_pair_is_no_obstacle() -> None:
    with serving(Behaviour()) as url:
        assert said(rewriter_at(url).rewrite_blocking("\ud800 ~~a\udfff~~").caption) == ["a\udfff"]


def test_cancelling_closes_the_connection() -> None:
    behaviour = Behaviour(seconds=30)
    cancel = threading.Event()
    with serving(behaviour) as url:
        rewriter = rewriter_at(url)
        threading.Timer(0.5, cancel.set).start()
        started = time.monotonic()
        with pytest.raises(RewriteCancelled):
            rewriter.rewrite_blocking(PROMPT, cancel)
        assert time.monotonic() - started < 15
        assert wait_until(lambda: behaviour.running == 0)
    assert rewriter.counts.failed == 0


def test_a_stream_that_is_left_closes_the_connection() -> None:
    async def leave(rewriter: Rewriter) -> None:
        async with aclosing(rewriter.stream(PROMPT)) as events:
            async for _ in events:
                break
        assert await asyncio.to_thread(wait_until, lambda: behaviour.running == 0)
        await rewriter.aclose()

    behaviour = Behaviour(seconds=30)
    with serving(behaviour) as url:
        asyncio.run(leave(rewriter_at(url)))


def wait_until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_thirty_two_at_once_are_three_times_as_fast_as_one_by_one() -> None:
    """One by one each takes as long: a quarter of them tells. Most of the time is what the replies themselves take."""
    behaviour = Behaviour(seconds=1.2, slots=32)

    async def all_at_once(rewriter: Rewriter, count: int, width: int) -> float:
        slots = asyncio.Semaphore(width)

        async def one(prompt: str) -> None:
            async with slots:
                assert (await rewriter.rewrite(prompt)).outcome == "as is"

        await rewriter.rewrite(PROMPT)  # finds the model, opens a connection
        started = time.monotonic()
        await asyncio.gather(*(one(f"{PROMPT} Take {number}.") for number in range(count)))
        seconds = time.monotonic() - started
        await rewriter.aclose()
        return seconds

    with serving(behaviour) as url:
        together = asyncio.run(all_at_once(rewriter_at(url), 32, width=32))
        most = behaviour.most_running
        one_by_one = 4 * asyncio.run(all_at_once(rewriter_at(url), 8, width=1))
    print(f"32: {one_by_one:.2f} s one by one, {together:.2f} s at once: {one_by_one / together:.1f} times as fast")
    assert most > 8
    assert one_by_one > 3 * together


def test_auto_takes_the_server_and_without_one_the_next(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Behaviour()) as url:
        rewriter = make_rewriter("auto", base_url=url)
        assert (rewriter.backend, rewriter.label) == ("vllm", f"{MODEL} at {url}")
        assert rewriter.rewrite_blocking(PROMPT).outcome == "as is"
    caplog.set_level("INFO", logger="rewriter")
    rewriter = make_rewriter("auto", base_url=url, model="nobody/has-this-model")
    assert rewriter.backend == "offline"
    assert "start_rewriter.sh" in caplog.text
    assert "nobody/has-this-model is not on this machine" in caplog.text
    assert "rewritten by: offline composer" in caplog.text


def test_obedient_replies_follow_the_prompt() -> None:
    assert (
        obedient([{"role": "user", "content": "x（占位符按顺序各出现一次：【台词1】（很短）。）"}]).count("【台词1】")
        == 1
    )


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    ("device", "there", "absent"),
    [
        ("gpu", "--gpu-memory-utilization 0.30", "--no-enable-chunked-prefill"),
        ("cpu", "--no-enable-chunked-prefill", "!"),
    ],
)
def test_the_start_script_waits_until_ready_and_stops_cleanly(
    tmp_path: Path, device: str, there: str, absent: str
) -> None:
    fake = tmp_path / "vllm" / "entrypoints" / "openai"
    fake.mkdir(parents=True)
    for folder in (tmp_path / "vllm", tmp_path / "vllm" / "entrypoints", fake):
        (folder / "__init__.py").touch()
    (fake / "api_server.py").write_text((ROOT / "tests" / "rewriter_server.py").read_text(encoding="utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "PORT": str(port)}
    process = subprocess.Popen(
        [ROOT / "scripts" / "start_rewriter.sh"],
        env={**environment, "MODEL": "tiny", "LOW_FOOTPRINT": "1", "DEVICE": device},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        while not (lines and "ready: " in lines[-1]):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        (arguments,) = [line for line in lines if line.startswith("--model tiny")]
        assert there in arguments
        assert absent not in arguments
        assert make_rewriter("vllm", base_url=f"http://127.0.0.1:{port}").rewrite_blocking(PROMPT).outcome == "as is"
        second = subprocess.run(
            [ROOT / "scripts" / "start_rewriter.sh"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2 and "answers at" in second.stderr and "another PORT" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with pytest.raises(BackendUnavailable):
            make_rewriter("vllm", base_url=f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
