"""The page's words in its languages, also for what the parts below it say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nava_core.request import MAX_SEED, GenerationRequest, ModelSpec, RequestError
from ui.catalogue import TEXTS, Catalogue

ROOT = Path(__file__).parents[1]
# Where people's input is refused: each message that is written there must have a translation.
REFUSING = [
    "nava_core/request.py",
    "nava_core/speech.py",
    "nava_core/batch.py",
    "nava_core/conditioning/image.py",
    "nava_core/conditioning/text.py",
    "nava_core/conditioning/speaker.py",
    "nava_core/engine/hearing.py",
    "ui/files.py",
    "ui/assignments.py",
    "ui/library/voices.py",
    "ui/library/recordings.py",
    "ui/queue_file.py",
]
# Said to whoever starts a program, not on the page.
COMMAND_LINE = ("the tokenizer does not know", "holds no prompt; write one", "which is neither in", "cannot be opened")
CHINESE = Catalogue("zh")


def _written(node: ast.expr) -> str | None:
    """An example of the message that an expression writes; None for one that comes from elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "<7>" for part in node.values)
    return None


def messages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if name in ("RequestError", "EngineError", "ValueError", "BadLine", "Problem"):
            written = _written(node.args[-1]) if node.args else None
            if written and not any(words in written for words in COMMAND_LINE):
                yield written
        # files.py and voices.py put their messages together from what they return or choose
        if isinstance(node, ast.Return) and path.name == "files.py" and isinstance(node.value, ast.JoinedStr):
            yield _written(node.value) or ""


@pytest.mark.parametrize("path", REFUSING)
def test_every_refusal_has_its_chinese(path: str) -> None:
    found = [*messages(ROOT / path)]
    assert found or path == "ui/queue_file.py"
    english = [message for message in found if CHINESE.said(_probed(message)) == _probed(message)]
    assert not english, "give these a translation in ui/texts/messages/zh.yaml"


def _probed(message: str) -> str:
    """As it is said where some of its words are chosen from a few."""
    if message.startswith("the recording <7>"):
        return "the recording is 2.0 s long and a voice needs at least 3 s; take a longer part"
    return message.replace("which cannot be read (<7>)", "which cannot be read (it is no picture)")


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_what_is_filled_in_is_carried_over(name: str) -> None:
    assert CHINESE.said(f"{name} is empty; choose another file") == f"{name} 是空文件；请选择别的文件"


def test_a_request_is_refused_in_chinese() -> None:
    with pytest.raises(RequestError) as refused:
        GenerationRequest("x", seed=-1).resolve(ModelSpec("small"))
    assert CHINESE.said(refused.value) == f"种子是 -1；请给出 0 到 {MAX_SEED} 的整数，或留空"


def test_english_and_unknown_words_stay() -> None:
    empty = "the prompt is empty; describe the scene in a sentence or more"
    assert Catalogue("en").said(empty) == empty != CHINESE.said(empty)
    assert CHINESE.said("something new") == "something new"


def test_both_say_the_same_values() -> None:
    for english, chinese in yaml.safe_load((TEXTS / "messages" / "zh.yaml").read_text(encoding="utf-8")).items():
        names = [re.findall(r"\{\w+\}", words) for words in (english, chinese)]
        assert sorted(names[0]) == sorted(names[1]), english
