"""The in-process backend with a tiny random Qwen3 model: the real model class and the real `generate`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from tiny_qwen3 import THINKING_TEMPLATE, byte_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from nava_core.speech import parse_speech
from rewriter import BackendUnavailable, RewriteCancelled, RewriteError, Rewriter, make_rewriter
from rewriter.backends.base import Chunk, Sampling
from rewriter.backends.local import LocalModel

PROMPT = "A woman says ~~Hello there!~~"
MESSAGES = [{"role": "user", "content": "一间咖啡馆"}]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: bytes as tokens, Qwen's marks, one layer."""
    path = tmp_path_factory.mktemp("tiny_qwen3")
    fast = byte_tokenizer()
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def local(folder: Path, max_tokens: int = 24, **options: object) -> LocalModel:
    return LocalModel(str(folder), device="cpu", sampling=Sampling(max_tokens=max_tokens), **options)  # type: ignore[arg-type]


async def chunks_of(model: LocalModel) -> list[Chunk]:
    async with aclosing(model.reply(MESSAGES, seed=1)) as chunks:
        return [chunk async for chunk in chunks]


def test_a_reply_is_streamed_and_ends(folder: Path) -> None:
    model = local(folder)
    assert model._loaded is None  # loaded when first used
    chunks = asyncio.run(chunks_of(model))
    assert [chunk.kind for chunk in chunks[-1:]] == ["end"]
    assert chunks[-1].text in ("length", "stop")
    assert isinstance(model._loaded[1], Qwen3ForCausalLM)
    loaded = model._loaded
    asyncio.run(chunks_of(model))
    assert model._loaded is loaded


def test_the_whole_rewrite_keeps_the_speech(folder: Path) -> None:
    rewriter = Rewriter(local(folder), attempts=2)
    result = rewriter.rewrite_blocking(PROMPT)
    assert (result.backend, result.outcome, result.attempts) == ("transformers", "composed", 2)
    assert [span.text for span in parse_speech(result.caption).spans] == ["Hello there!"]
    assert str(folder) in rewriter.label


def test_generate_gets_the_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local(folder)
    asyncio.run(chunks_of(model))
    seen: dict[str, object] = {}
    generate = model._loaded[1].generate

    def spy(**options: object) -> torch.Tensor:
        seen.update(options)
        return generate(**options)

    monkeypatch.setattr(model._loaded[1], "generate", spy)
    asyncio.run(chunks_of(model))
    expected = {"temperature": 0.3, "top_p": 0.75, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    assert {name: seen[name] for name in expected} == expected


def test_a_template_that_opens_the_thinking(folder: Path) -> None:
    model = local(folder)
    asyncio.run(chunks_of(model))
    model._loaded[0].chat_template = THINKING_TEMPLATE
    assert asyncio.run(chunks_of(model))[0] == Chunk("text", "<think>")

    async def kinds() -> list[str]:
        async with aclosing(Rewriter(model, attempts=1).stream(PROMPT)) as events:
            return [event.kind async for event in events]

    told = asyncio.run(kinds())
    assert (told[0], told[-1]) == ("thinking", "done")


def test_cancelling_ends_the_generation(folder: Path) -> None:
    model = local(folder, max_tokens=8000)
    asyncio.run(chunks_of(local(folder, 1)))  # imports what generating imports
    _, loaded = model._load()
    loaded.generation_config.suppress_tokens = [loaded.config.eos_token_id]  # what it says by chance may end at once
    rewriter, cancel = Rewriter(model, attempts=1), threading.Event()
    threading.Timer(1.0, cancel.set).start()
    with pytest.raises(RewriteCancelled):
        rewriter.rewrite_blocking(PROMPT, cancel)
    started = time.monotonic()
    with model._lock:  # free as soon as the thread has ended
        pass
    assert time.monotonic() - started < 30
    assert rewriter.counts.total == 0


def test_a_parked_model_leaves_the_device_and_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local(folder)
    model.park()  # nothing is loaded yet
    asyncio.run(chunks_of(model))
    model.park()  # nor is there a GPU to free
    assert not model._parked
    moves: list[str] = []
    monkeypatch.setattr(model._loaded[1], "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr(model, "device", torch.device("cuda:0"))
    rewriter = Rewriter(model)
    rewriter.park()
    rewriter.park()
    assert moves == ["cpu"]
    rewriter.resume()
    rewriter.resume()
    assert moves == ["cpu", "cuda:0"]
    model.park()
    monkeypatch.setattr(model, "device", torch.device("cpu"))
    asyncio.run(chunks_of(model))  # the next reply brings it back by itself
    assert moves == ["cpu", "cuda:0", "cpu", "cpu"]
    assert not model._parked


def test_parking_waits_for_a_reply(folder: Path) -> None:
    model = local(folder)
    with model._lock:
        parking = threading.Thread(target=model.park, daemon=True)
        parking.start()
        parking.join(0.2)
        assert parking.is_alive()
    parking.join(30)
    assert not parking.is_alive()


def test_a_prompt_beyond_the_context(folder: Path) -> None:
    rewriter = Rewriter(local(folder))
    with pytest.raises(RewriteError, match=r"needs \d+ tokens and .* reads 8192; shorten"):
        rewriter.rewrite_blocking("咖" * 3000)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackendUnavailable, match=r"cannot be loaded .*--model"):
        Rewriter(LocalModel(str(tmp_path), device="cpu")).rewrite_blocking(PROMPT)


def test_out_of_memory_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local(folder)
    asyncio.run(chunks_of(model))

    def full(**options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model._loaded[1], "generate", full)
    with pytest.raises(RewriteError, match=r"does not fit .*--four-bit.*--backend vllm"):
        Rewriter(model).rewrite_blocking(PROMPT)


def test_four_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.backends.local.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install bitsandbytes"):
        make_rewriter("transformers", four_bit=True)


def test_auto_does_not_take_a_model_without_a_gpu(folder: Path) -> None:
    from rewriter.factory import why_no_local_model

    reason = why_no_local_model(str(folder))
    assert ("no GPU" in reason) == (not torch.cuda.is_available())
    assert why_no_local_model("not a/hub/id").endswith("neither a folder nor a hub id")


def test_importing_the_rewriter_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys, rewriter; r = rewriter.make_rewriter('offline'); r.rewrite_blocking('red ball');"
        "print([name for name in ('torch', 'transformers', 'gradio', 'httpx', 'training') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
