"""Replies from a model in this process, by transformers. Imports torch, so import it only when it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList, TextStreamer

from rewriter.backends.base import DEFAULT_MODEL, Chunk, Sampling
from rewriter.messages import Message
from rewriter.results import BackendUnavailable, RewriteError

logger = logging.getLogger(__name__)

NAME = "transformers"


class LocalModel:
    """A chat model loaded when first used, one reply at a time.

    source: hub id or folder. device: such as "cuda" or "cpu"; None takes a GPU where there is one. dtype: None takes
    bfloat16 on a GPU, float32 on a CPU. four_bit: NF4 weights by bitsandbytes, about a third of the memory.
    Raises BackendUnavailable where 4 bits are wanted and bitsandbytes is missing.
    """

    name = NAME
    concurrency = 1
    thinking_opened = False  # a reply tells itself: it begins with `<think>` where the chat template has opened it

    def __init__(
        self,
        source: str = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        four_bit: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        if four_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise BackendUnavailable(
                "4-bit weights need the package bitsandbytes, which is not installed; "
                "`pip install bitsandbytes`, or leave out --four-bit"
            )
        self.source = source
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self._four_bit = four_bit
        self._sampling = sampling or Sampling()
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._parked = False

    @property
    def label(self) -> str:
        return f"{self.source} in this process, on {self.device}{', 4 bits' if self._four_bit else ''}"

    async def reply(self, messages: list[Message], seed: int) -> AsyncGenerator[Chunk, None]:
        """Stream one reply, after any other in progress; the first one loads the model.

        `seed` is unused: generation draws from torch's global state, which is not this class's to set.
        Raises RewriteError.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        stop = threading.Event()

        def put(item: Chunk | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                self._generate(messages, stop, put)
            except BaseException as error:  # noqa: BLE001 (raised again where it is awaited)
                put(error)

        threading.Thread(target=work, name="rewriter", daemon=True).start()
        try:
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise self._explained(item) from item
                yield item
                if item.kind == "end":
                    return
        finally:
            stop.set()

    async def aclose(self) -> None:
        """Nothing to do: a reply's thread ends with it."""

    def park(self) -> None:
        """Free the GPU: weights to the CPU, 4-bit ones dropped (they load again faster than they move safely)."""
        with self._lock:
            if self._loaded is None or self._parked or self.device.type == "cpu":
                return
            if self._four_bit:
                self._loaded = None
            else:
                self._loaded[1].to("cpu")
                self._parked = True
            gc.collect()
            torch.cuda.empty_cache()
            logger.info("%s left the GPU", self.source)

    def resume(self) -> None:
        with self._lock:
            self._unpark()

    def _unpark(self) -> None:
        if self._parked and self._loaded is not None:
            self._loaded[1].to(self.device)
            self._parked = False
            logger.info("%s is back on %s", self.source, self.device)

    def _generate(self, messages: list[Message], stop: threading.Event, put: Callable[[Chunk], None]) -> None:
        with self._lock, torch.inference_mode():
            if stop.is_set():
                return
            tokenizer, model = self._load()
            self._unpark()
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if text.rstrip().endswith("<think>"):
                put(Chunk("text", "<think>"))
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self.device)
            prompt_tokens = inputs["input_ids"].shape[1]
            limit = self._most_new_tokens(model, prompt_tokens)
            tokens = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                streamer=_Streamer(tokenizer, put),
                stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
                do_sample=True,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                repetition_penalty=self._sampling.repetition_penalty,
                max_new_tokens=limit,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            full = tokens.shape[1] - prompt_tokens >= limit
            put(Chunk("end", "length" if full else "stop"))

    def _most_new_tokens(self, model: Any, prompt_tokens: int) -> int:
        context = getattr(model.config, "max_position_embeddings", None) or prompt_tokens + self._sampling.max_tokens
        room = context - prompt_tokens
        if room < 1:
            raise RewriteError(
                f"the prompt needs {prompt_tokens} tokens and {self.source} reads {context}; shorten the prompt"
            )
        return min(self._sampling.max_tokens, room)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            logger.info("loading %s", self.source)
            options: dict[str, Any] = {"dtype": self._dtype}
            if self._four_bit:
                from transformers import BitsAndBytesConfig

                options["device_map"] = {"": self.device}
                options["quantization_config"] = BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=self._dtype
                )
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.source)
                model = AutoModelForCausalLM.from_pretrained(self.source, **options)
            except (OSError, ValueError) as error:
                raise BackendUnavailable(
                    f"{self.source} cannot be loaded ({str(error).splitlines()[0]}); name a folder with a chat model, "
                    "or a hub id that this machine can download (--model)"
                ) from error
            if not self._four_bit:
                model = model.to(self.device)
            self._loaded, self._parked = (tokenizer, model.eval()), False
        return self._loaded

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, torch.OutOfMemoryError):
            return RewriteError(
                f"{self.source} does not fit into the memory of {self.device}; "
                "use 4 bits (--four-bit), or a server on another GPU (--backend vllm)"
            )
        if isinstance(error, RewriteError) or not isinstance(error, Exception):
            return error
        return RewriteError(f"{self.source} failed: {type(error).__name__}: {error}")


class _Streamer(TextStreamer):
    """Hands on whole words of a reply as they are generated."""

    def __init__(self, tokenizer: Any, put: Callable[[Chunk], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._put = put

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._put(Chunk("text", text))


class _Stopped(StoppingCriteria):
    """Ends a reply at its next token once `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)
