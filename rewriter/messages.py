"""What a language model is asked: our system prompt, the locked prompt, and after a poor reply what was wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from rewriter.checks import length_bounds
from rewriter.locking import LockedPrompt

Message = dict[str, str]

_SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.txt")
_WORDS = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")
_SCRIPTS = {
    "日文": re.compile(r"[\u3040-\u30ff]"),
    "韩文": re.compile(r"[\uac00-\ud7a3]"),
    "中文": re.compile(r"[\u3400-\u9fff]"),
    "俄文": re.compile(r"[\u0400-\u04ff]"),
}


def make_messages(locked: LockedPrompt, hints: Sequence[str] = ()) -> list[Message]:
    """The chat for one prompt. hints: what was wrong with the reply before, in Chinese."""
    shortest, longest = length_bounds(locked.description)
    system = _system_prompt().replace("{word}", locked.word)
    system = system.replace("{shortest}", str(shortest)).replace("{longest}", str(longest))
    parts = [f"原文：\n{locked.text.strip()}", _about_speech(locked)]
    if hints:
        parts.append("上一次的回复不合要求，请改正：" + "".join(dict.fromkeys(hints)))
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


def _about_speech(locked: LockedPrompt) -> str:
    if not locked.spans:
        return "（原文没有对白，画面中没有人说出具体的话。）"
    items = zip(locked.placeholders, locked.spans, strict=True)
    listed = "、".join(f"{name}（{_about_words(span.text)}）" for name, span in items)
    return f"（占位符按顺序各出现一次：{listed}。）"


def _about_words(text: str) -> str:
    """The language and length of a line of speech, which a description may use, and none of its words."""
    language = next((name for name, letters in _SCRIPTS.items() if letters.search(text)), "")
    words = len(_WORDS.findall(text))
    if not language:
        return f"外文，约{words}个词" if words else "很短"
    return f"{language}，约{len(_SCRIPTS[language].findall(text)) + words}个字"


@lru_cache
def _system_prompt() -> str:
    return _SYSTEM_PROMPT.read_text(encoding="utf-8").strip()
