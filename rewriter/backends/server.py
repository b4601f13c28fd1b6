"""Replies from any OpenAI-compatible server, such as vLLM."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from rewriter.backends.base import DEFAULT_MODEL, Chunk, Sampling
from rewriter.messages import Message
from rewriter.results import BackendUnavailable, RewriteError

logger = logging.getLogger(__name__)

NAME = "vllm"
URL_VARIABLE, KEY_VARIABLE = "NAVA_REWRITER_URL", "NAVA_REWRITER_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000/v1"
CONCURRENCY = 32
HOW_TO_START = "start one with scripts/start_rewriter.sh, or give the address of a running one (--base-url)"
PROBE_SECONDS = 2.0
CONNECT_SECONDS = 5.0
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
# What a server may refuse and a reply can do without: parameters of vLLM's own, and a bound beyond a small context.
OPTIONAL_PARAMETERS = ("top_k", "repetition_penalty", "seed", "max_tokens")
SHOWN_LETTERS = 300


class ServerModel:
    """A model behind `base_url`.

    model: its name there; None takes the first that the server lists. timeout: seconds without any sign of life of a
    reply. tries: requests for one reply, while the server is busy or fails. wait: seconds before the second try, which
    double from then on. Raises ValueError for an address that is none.
    """

    name = NAME

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        *,
        concurrency: int = CONCURRENCY,
        timeout: float = 120.0,
        tries: int = TRIES,
        wait: float = FIRST_WAIT,
        sampling: Sampling | None = None,
        api_key: str | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
        self.base_url = _base_url(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        self.concurrency = concurrency
        self._model = model
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_SECONDS)
        self._tries, self._wait = tries, wait
        self._sampling = sampling or Sampling()
        key = api_key or os.environ.get(KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment is for the world outside.
        self._trust_env = httpx.URL(self.base_url).host not in ("127.0.0.1", "localhost", "::1")
        self._left_out: frozenset[str] = frozenset()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def label(self) -> str:
        return f"{self._model or 'model'} at {self.base_url}"

    @property
    def thinking_opened(self) -> bool:
        """A guess from its name: Qwen's "Thinking" models begin inside it, where a server does not part it."""
        return "thinking" in (self._model or DEFAULT_MODEL).lower()

    def probe(self) -> None:
        """Ask the server for its models, and take the first where none is named. Blocks for two seconds at most.

        Raises BackendUnavailable where there is no server, or it does not have the model.
        """
        try:
            response = httpx.get(
                f"{self.base_url}/models", headers=self._headers, timeout=PROBE_SECONDS, trust_env=self._trust_env
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        try:
            self._choose_model(response)
        except _Busy as busy:
            raise BackendUnavailable(f"the rewriting server at {self.base_url} {busy}; {HOW_TO_START}") from busy

    async def reply(self, messages: list[Message], seed: int) -> AsyncGenerator[Chunk, None]:
        """Stream one reply, asking again while the server is busy or fails. Raises RewriteError."""
        for attempt in range(1, self._tries + 1):
            try:
                if self._model is None:
                    self._choose_model(await self._client().get("/models", timeout=CONNECT_SECONDS))
                async with aclosing(self._reply_once(messages, seed)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except _Busy as busy:
                problem, asked_wait = str(busy), busy.wait
                failure: RewriteError = RewriteError(f"the server at {self.base_url} {problem}, {attempt} times")
            except httpx.TimeoutException as error:
                problem, asked_wait = "did not answer in time", None
                failure = self._unreachable(error)
            except httpx.TransportError as error:
                problem, asked_wait = f"broke the connection ({type(error).__name__})", None
                failure = self._unreachable(error)
            if attempt == self._tries:
                raise failure
            seconds = self._seconds_before(attempt, asked_wait)
            logger.info("the server at %s %s; asking again in %.1f s", self.base_url, problem, seconds)
            yield Chunk("restart", f"the server {problem}")
            await asyncio.sleep(seconds)

    async def aclose(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def park(self) -> None:
        """Nothing to do: the server has its own place."""

    def resume(self) -> None:
        """Nothing to do."""

    def _client(self) -> httpx.AsyncClient:
        """The running event loop's connections; a connection cannot serve two loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency)
            self._clients[loop] = httpx.AsyncClient(
                base_url=self.base_url,
                headers=self._headers,
                timeout=self._timeout,
                limits=limits,
                trust_env=self._trust_env,
            )
        return self._clients[loop]

    async def _reply_once(self, messages: list[Message], seed: int) -> AsyncGenerator[Chunk, None]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        left_out: frozenset[str] = frozenset()
        while True:
            left_out |= self._left_out  # other replies may have learned more meanwhile
            # ASCII escapes: a prompt may hold half a surrogate pair, which UTF-8 cannot carry.
            body = json.dumps(self._payload(messages, seed, left_out)).encode("ascii")
            async with self._client().stream("POST", "/chat/completions", content=body, headers=headers) as response:
                if response.status_code == 200:
                    # Only now: a prompt beyond the context is refused whatever is left out.
                    self._left_out |= left_out
                    async with aclosing(_chunks(response)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                refusal = await response.aread()
                unwanted = self._unwanted(response.status_code, refusal) - left_out
                if not unwanted:
                    raise self._refusal(response, refusal)
                logger.warning("the server at %s refuses %s: left out", self.base_url, ", ".join(sorted(unwanted)))
                left_out |= unwanted

    def _payload(self, messages: list[Message], seed: int, left_out: frozenset[str]) -> dict[str, Any]:
        sampling = self._sampling
        payload = {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "max_tokens": sampling.max_tokens,
        }
        return {key: value for key, value in payload.items() if key not in left_out}

    def _unwanted(self, status: int, refusal: bytes) -> frozenset[str]:
        """The optional parameters that a refusal is about."""
        if status not in (400, 422):
            return frozenset()
        named = {name for name in OPTIONAL_PARAMETERS if name.encode() in refusal}
        return frozenset(named | ({"max_tokens"} if b"context length" in refusal else set()))

    def _choose_model(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise self._refusal(response, response.content)
        try:
            listed = [entry["id"] for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BackendUnavailable(
                f"{self.base_url} answers, but is no OpenAI-compatible server; {HOW_TO_START}"
            ) from error
        if self._model is None:
            if not listed:
                raise BackendUnavailable(f"the server at {self.base_url} lists no model; {HOW_TO_START}")
            self._model = listed[0]
        elif self._model not in listed:
            raise BackendUnavailable(
                f"the server at {self.base_url} does not have the model {self._model}, but {', '.join(listed)}; "
                "name one of these (--model), or none"
            )

    def _refusal(self, response: httpx.Response, body: bytes) -> Exception:
        status = response.status_code
        if status in BUSY:
            return _Busy(f"answered {status} ({response.reason_phrase})", _retry_after(response))
        said = body.decode("utf-8", "replace").strip()[:SHOWN_LETTERS]
        if status in (401, 403):
            return BackendUnavailable(
                f"the server at {self.base_url} wants a key ({status}); put it into the variable {KEY_VARIABLE}"
            )
        if status == 404 and self._model and self._model in said:
            return BackendUnavailable(
                f"the server at {self.base_url} no longer has the model {self._model}; name another (--model), or none"
            )
        if status == 404:
            return BackendUnavailable(f"{self.base_url} is no OpenAI-compatible server (404: {said}); {HOW_TO_START}")
        return RewriteError(f"the server at {self.base_url} refused the prompt ({status}): {said}")

    def _unreachable(self, error: Exception) -> BackendUnavailable:
        detail = str(error) or type(error).__name__
        return BackendUnavailable(f"no answer from the rewriting server at {self.base_url} ({detail}); {HOW_TO_START}")

    def _seconds_before(self, attempt: int, asked: float | None) -> float:
        own = self._wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # so that 32 do not come back at once
        return min(LONGEST_WAIT, max(own, asked or 0.0))


class _Busy(Exception):
    """The server cannot now; `wait`: after how many seconds it wants to be asked again."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


def _base_url(url: str) -> str:
    try:
        parsed = httpx.URL(url.strip().rstrip("/"))
    except httpx.InvalidURL:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"the server's address is {url!r}; give one like {DEFAULT_URL}")
    return str(parsed if parsed.path not in ("", "/") else parsed.copy_with(path="/v1"))


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None


async def _chunks(response: httpx.Response) -> AsyncGenerator[Chunk, None]:
    """The pieces of a streamed reply, or of a whole one from a server that does not stream."""
    if "text/event-stream" not in response.headers.get("Content-Type", ""):
        for chunk in _pieces(_json(await response.aread())):
            yield chunk
        return
    ended, held = False, b""
    async for received in response.aiter_bytes():
        # Not by httpx's lines: those also end at letters such as U+2028, which a reply may hold.
        *lines, held = (held + received).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            # Some servers close a reply with the mark alone.
            pieces = [Chunk("end", "stop")] if data == b"[DONE]" else _pieces(_json(data)) if data else []
            for chunk in pieces:
                if not ended:
                    yield chunk
                ended = ended or chunk.kind == "end"
    if not ended:
        raise _Busy("ended a reply in the middle")


def _json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except ValueError as error:
        raise _Busy("sent something that is not JSON") from error
    if not isinstance(values, dict):
        raise _Busy("sent something that is no reply")
    return values


def _pieces(values: dict[str, Any]) -> list[Chunk]:
    if error := values.get("error"):
        message = error.get("message", error) if isinstance(error, dict) else error
        raise _Busy(f"failed ({str(message)[:SHOWN_LETTERS]})")
    chunks = []
    for choice in (values.get("choices") or [])[:1]:
        message = choice.get("delta") or choice.get("message") or {}
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if thinking:
            chunks.append(Chunk("reasoning", str(thinking)))
        if message.get("content"):
            chunks.append(Chunk("text", str(message["content"])))
        if choice.get("finish_reason"):
            chunks.append(Chunk("end", str(choice["finish_reason"])))
    return chunks
