"""A stand-in for a vLLM server: real HTTP and the same protocol, without a model.

Its answers are shaped as those of vLLM 0.32, which tests/test_rewriter_vllm.py compares. What it is not: vLLM's replies
come from weights, and its batching shares one device, so that a reply slows down as others join. Here each reply takes
a fixed time, and `slots` of them run at once. Run as a script it prints its arguments and takes vLLM's own (`--port`,
`--model`, the rest ignored), for scripts/start_rewriter.sh.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "stand-in"
DESCRIPTION = (
    "写实电影风格，午后温暖的阳光斜照进一间安静的咖啡馆，空气里浮着细小的灰尘，色调柔和偏黄。一位穿米色毛衣的年轻女子坐在靠窗的木桌旁，"
    "双手捧着白色的杯子，神情平静而专注，桌上摊开一本旧书。她先低头看着杯里的热气，随后慢慢抬起头望向窗外，最后露出浅浅的微笑。"
    "镜头以平视的中景开始，机位稳定，缓缓向前推近到她的面部特写，背景渐渐虚化。{speech}"
    "店里传来杯碟轻碰的清脆声响和远处低低的交谈声，窗外偶尔有汽车驶过，整体声音安静、层次清楚。"
)


def obedient(messages: list[dict[str, str]]) -> str:
    """A caption that holds each placeholder that the chat asks for, once and in order."""
    names = dict.fromkeys(re.findall(r"【[^】]+\d】", messages[-1]["content"].rpartition("（占位符")[2]))
    speech = "".join(f"她轻声说：{name}。" for name in names) or "画面中没有人说话。"
    return DESCRIPTION.format(speech=speech)


@dataclass
class Behaviour:
    """reply: messages -> text. thinking: sent before it, in `thinking_field` or, where that is None, in the text.
    failures: what the next requests get instead: a status, "cut" (the connection breaks in the
    middle), "error" (an error within the stream), "half" (no end), "garbage". strict: refuses vLLM's own parameters.
    slots: replies at once, each of which takes `seconds`.
    """

    reply: Callable[[list[dict[str, str]]], str] = obedient
    thinking: str = ""
    thinking_field: str | None = "reasoning"
    finish: str = "stop"
    failures: list[Any] = field(default_factory=list)
    models: tuple[str, ...] = (MODEL,)
    strict: bool = False
    context: int = 100_000
    stream: bool = True
    slots: int = 16
    seconds: float = 0.0
    retry_after: str | None = None
    key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.free = threading.BoundedSemaphore(self.slots)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    behaviour: Behaviour

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if behaviour.key and self.headers.get("Authorization") != f"Bearer {behaviour.key}":
            self._json({"error": "Unauthorized"}, 401)
        elif self.path == "/health":
            self._json({})
        elif self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": name, "object": "model"} for name in behaviour.models]})
        else:
            self._json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with behaviour.lock:
            behaviour.requests.append(body)
            failure = behaviour.failures.pop(0) if behaviour.failures else None
        if isinstance(failure, int):
            self._refuse("as told", failure)
        elif body["model"] not in behaviour.models:
            self._refuse(f"The model `{body['model']}` does not exist.", 404, "model")
        elif behaviour.strict and (unknown := {"top_k", "repetition_penalty"} & set(body)):
            self._refuse(f"Unrecognized request argument supplied: {min(unknown)}", 400, min(unknown))
        elif (asked := body.get("max_tokens", 0)) > (context := behaviour.context):
            self._refuse(f"max_tokens={asked} cannot be greater than max_model_len={context}.", 400, "max_tokens")
        elif sum(len(message["content"]) for message in body["messages"]) > context:
            self._refuse(f"This model's maximum context length is {context} tokens.", 400, "input_tokens")
        else:
            with behaviour.free:
                self._reply(behaviour, body, failure)

    def _reply(self, behaviour: Behaviour, body: dict[str, Any], failure: Any) -> None:
        with behaviour.lock:
            behaviour.running += 1
            behaviour.most_running = max(behaviour.most_running, behaviour.running)
        try:
            text = behaviour.reply(body["messages"])
            thinking = behaviour.thinking
            if thinking and behaviour.thinking_field is None:
                text, thinking = f"{thinking}{text}", ""
            if not behaviour.stream:
                time.sleep(behaviour.seconds)
                message = {"role": "assistant", "content": text}
                self._json({"choices": [{"index": 0, "message": message, "finish_reason": behaviour.finish}]})
                return
            self._stream(behaviour, thinking, text, failure)
        finally:
            with behaviour.lock:
                behaviour.running -= 1

    def _stream(self, behaviour: Behaviour, thinking: str, text: str, failure: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = [{"role": "assistant", "content": ""}]
        pieces += [{behaviour.thinking_field or "": piece} for piece in _cut(thinking)]
        pieces += [{"content": piece} for piece in _cut(text)]
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": MODEL}
        for index, delta in enumerate(pieces, 1):
            time.sleep(behaviour.seconds / len(pieces))
            if failure and index > len(pieces) // 2:
                self._fail(failure)
                return
            # The last piece of text says that it is the last; no empty one follows.
            finish = behaviour.finish if behaviour.finish and index == len(pieces) else None
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
            self._event({**chunk, "choices": [choice]})
        self._chunk("data: [DONE]\n\n")
        self._chunk("")

    def _fail(self, failure: str) -> None:
        if failure == "error":
            self._event(_error("the engine died", 500))
            self._chunk("data: [DONE]\n\n")
        elif failure == "garbage":
            self._chunk("data: {not json\n\n")
        if failure != "cut":
            self._chunk("")
        self.close_connection = True

    def _event(self, values: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(values, ensure_ascii=False)}\n\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _refuse(self, message: str, status: int, parameter: str | None = None) -> None:
        self._json(_error(message, status, parameter), status)

    def _json(self, values: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429 and self.server.behaviour.retry_after:
            self.send_header("Retry-After", self.server.behaviour.retry_after)
        self.end_headers()
        self.wfile.write(data)


def _error(message: str, status: int, parameter: str | None = None) -> dict[str, Any]:
    kinds = {400: "BadRequestError", 404: "NotFoundError"}
    kind = kinds.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": parameter, "code": status}}


def _cut(text: str, length: int = 24) -> list[str]:
    return [text[start : start + length] for start in range(0, len(text), length)]


@contextmanager
def serving(behaviour: Behaviour, port: int = 0) -> Iterator[str]:
    """The address of a running server."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.behaviour = behaviour
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    print(" ".join(sys.argv[1:]), flush=True)
    options = dict(zip(sys.argv, sys.argv[1:], strict=False))
    with serving(Behaviour(models=(options["--model"],)), int(options["--port"])):
        threading.Event().wait()
