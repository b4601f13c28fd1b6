"""Which backend to use."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Literal, get_args

from rewriter.backends.base import DEFAULT_MODEL, LanguageModel, Sampling
from rewriter.results import BackendUnavailable
from rewriter.rewriter import ATTEMPTS, Rewriter

logger = logging.getLogger(__name__)

BackendName = Literal["auto", "vllm", "transformers", "offline"]


def make_rewriter(
    backend: BackendName = "auto",
    *,
    base_url: str | None = None,
    model: str | None = None,
    concurrency: int = 32,
    timeout: float = 120.0,
    four_bit: bool = False,
    device: str | None = None,
    attempts: int = ATTEMPTS,
    sampling: Sampling | None = None,
) -> Rewriter:
    """A rewriter on `backend`; "auto" takes the first that is there of vllm, transformers and offline, and logs which.

    base_url: of an OpenAI-compatible server (default: NAVA_REWRITER_URL, else this machine's port 8000). model: its
    name on the server, or a hub id or folder (default: the server's first, or Qwen3-4B-Thinking-2507). timeout: seconds
    without a sign of life from the server. four_bit, device: for transformers. attempts: replies asked for at most.
    Asking a server takes two seconds at most; a model in this process is loaded when first used.
    Raises ValueError for values that make no sense, BackendUnavailable where a named backend is not there.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(BackendName))}")
    chosen: LanguageModel | None = None
    if backend == "vllm":
        chosen = _server(base_url, model, concurrency, timeout, sampling)
    elif backend == "transformers":
        chosen = _local(model, four_bit, device, sampling)
    elif backend == "auto":
        try:
            chosen = _server(base_url, model, concurrency, timeout, sampling)
        except BackendUnavailable as error:
            logger.info("auto: %s", error)
            if reason := why_no_local_model(model):
                logger.info("auto: no model in this process, since %s", reason)
            else:
                chosen = _local(model, four_bit, device, sampling)
    rewriter = Rewriter(chosen, attempts)
    logger.info("prompts are rewritten by: %s", rewriter.label)
    return rewriter


def why_no_local_model(model: str | None) -> str:
    """Why "auto" would not run a model in this process; empty where it would.

    It never downloads gigabytes unasked, and 4B parameters that think need a GPU to answer within a minute.
    """
    source = model or DEFAULT_MODEL
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        return "transformers or torch is not installed"
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(source, "config.json")
        except HFValidationError:
            return f"{source} is neither a folder nor a hub id"
        if not isinstance(found, str):
            return f"{source} is not on this machine (--backend transformers downloads it)"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU (--backend transformers runs it on the CPU)"
    return ""


def _server(
    base_url: str | None, model: str | None, concurrency: int, timeout: float, sampling: Sampling | None
) -> LanguageModel:
    from rewriter.backends.server import ServerModel

    server = ServerModel(base_url, model, concurrency=concurrency, timeout=timeout, sampling=sampling)
    server.probe()
    return server


def _local(model: str | None, four_bit: bool, device: str | None, sampling: Sampling | None) -> LanguageModel:
    from rewriter.backends.local import LocalModel

    return LocalModel(model or DEFAULT_MODEL, device=device, four_bit=four_bit, sampling=sampling)
