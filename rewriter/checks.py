"""What a reply must be to serve as a caption: one Chinese paragraph of a fitting length and nothing besides."""

from __future__ import annotations

import re
from dataclasses import dataclass

SHORTEST, LONGEST = 180, 500
"""Characters of description that a caption should have, its speech and white space not counted."""
LONG_INPUT = 400
"""From here on the description is long already, and the bounds follow it."""
FAR_TOO_LONG = 1.4
"""Times the most characters: beyond this the text encoder's 512 tokens would cut the caption."""
CHINESE_SHARE = 0.5

_THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_LEFTOVERS = re.compile(
    r"</?think|占位符|提示词|用户(?:要求|希望|想要|提供|给出|输入|原文|的)|^(?:嗯|好的?|首先|让我|我需要|我们需要)[，,]"
)
_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_OTHER_LETTERS = re.compile(r"[^\W\d_\u3400-\u9fff\uf900-\ufaff]+")  # a word counts as one Chinese character does
_LABEL = re.compile(
    r"^(?:#{1,6} +|>+ +|\*\*)?(?:改写后?的?|扩写后?的?|最终的?|优化后?的?)?"
    r"(?:提示词|描述|结果|文本|版本|段落|输出|caption|prompt)(?:如下)?(?:\*\*)?[:：](?:\*\*)? *",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^(?:(?:好的|当然|没问题|sure\b|okay\b|#).{0,60}|(?:以下|下面|这是|根据|改写|扩写|here\b|caption\b).{0,60}[:：])$",
    re.IGNORECASE,
)
_POSTSCRIPT = re.compile(
    r"^[（(【\[*—-]*\s?(?:注[:：意]|说明[:：]|备注|解释[:：]|改写说明|希望|以上|如需|如果您|如有|"
    r"note\b|hope\b|this caption)",
    re.IGNORECASE,
)
# "二、三个人" is an amount, no item of a list.
_LINE_DECORATION = re.compile(
    r"^(?:#{1,6} +|>+ +|[-*•] +|\d{1,2}[.、] *|[（(]?[一二三四五六七八九十][、）)](?![一二三四五六七八九十]) *)"
)
_FENCE = re.compile(r"^```[a-z]*|```$")
# The system prompt's elements, used as headings instead of being told.
_HEADING = re.compile(
    r"(?:^|(?<=[。；;\n*】 ]))【?(?:画面|整体|摄影|人物|主体|场景|环境|音效|声音|时间)?"
    r"(?:风格|氛围|主体|人物|环境|场景|光线|动作|镜头|对白|台词|声音|音效|设计|描述)"
    r"(?:[与和及](?:风格|整体氛围|氛围|光线|情绪|音效|音乐|设计))?(?:】|[:：])"
)
_MOST_HEADINGS = 2


@dataclass(frozen=True)
class Fault:
    """Why a reply is no good caption. A hard one forbids its use; `hint` tells the model, in Chinese."""

    what: str
    hint: str
    hard: bool


def strip_thinking(text: str, opened: bool = False) -> str:
    """What follows the thinking in a reply; empty where the thinking was never finished.

    opened: the chat template has opened the thinking already, so that the reply begins inside it.
    """
    marks = list(_THINKING.finditer(text))
    closing = [mark for mark in marks if mark[1]]
    if closing:
        text = text[closing[-1].end() :]
    elif opened:
        return ""
    unfinished = next((mark.start() for mark in _THINKING.finditer(text) if not mark[1]), len(text))
    return text[:unfinished].strip()


def plain_paragraph(reply: str) -> tuple[str, bool]:
    """The caption in `reply` without headings, fences, greetings and remarks around it; and whether there were any.

    A line with a placeholder (recognised by its brackets) is never left out.
    """
    lines = [_FENCE.sub("", line.strip()).strip() for line in reply.strip().splitlines()]
    kept = [line for line in lines if line and set(line) - set("-*_= ")]
    while len(kept) > 1 and _PREAMBLE.match(kept[0]) and "【" not in kept[0]:
        kept.pop(0)
    remark = next((index for index, line in enumerate(kept) if index and _POSTSCRIPT.match(line)), len(kept))
    if all("【" not in line[1:] for line in kept[remark:]):
        kept = kept[:remark]
    text = "\n".join(_LINE_DECORATION.sub("", line).replace("**", "") for line in kept)
    text = _LABEL.sub("", text, count=1).strip()
    if len(text) > 2 and (text[0], text[-1]) in {("“", "”"), ('"', '"'), ("「", "」")}:
        inner = text[1:-1]
        text = inner if not set(inner) & set('“”"「」') else text
    return text, text != reply.strip()


def find_faults(description: str, prompt: str) -> list[Fault]:
    """What is wrong with a caption's `description`, both it and the prompt's without speech."""
    faults = []
    if not description.strip():
        return [Fault("empty", "回复是空的，请直接写出改写后的段落。", hard=True)]
    chinese = len(_CHINESE.findall(description))
    if chinese < CHINESE_SHARE * (chinese + len(_OTHER_LETTERS.findall(description))) or not chinese:
        faults.append(Fault("not Chinese", "请用中文书写整个段落。", hard=True))
    leftover = _LEFTOVERS.search(description)
    if leftover and leftover[0] not in prompt:
        faults.append(
            Fault(f"leftovers of thinking ({leftover[0]})", "只输出段落本身，不要写思考过程或解释。", hard=True)
        )
    if len(_HEADING.findall(description)) > _MOST_HEADINGS:
        faults.append(Fault("headings", "写成连贯的一段话，不要“风格：”“镜头：”这样的小标题。", hard=False))
    length, bounds = visible(description), length_bounds(prompt)
    if length < bounds[0]:
        faults.append(Fault(f"{length} characters, fewer than {bounds[0]}", f"请写到{bounds[0]}字以上。", hard=False))
    if length > bounds[1]:
        hard = length > FAR_TOO_LONG * bounds[1]
        faults.append(Fault(f"{length} characters, more than {bounds[1]}", f"请压缩到{bounds[1]}字以内。", hard=hard))
    return faults


def length_bounds(prompt: str) -> tuple[int, int]:
    """Fewest and most characters of a caption's description for a prompt's."""
    length = visible(prompt)
    return (SHORTEST, LONGEST) if length < LONG_INPUT else (SHORTEST, max(LONGEST, round(1.25 * length)))


def length_miss(description: str, prompt: str) -> int:
    """By how many characters a caption's description misses the bounds; 0 within them."""
    length, (fewest, most) = visible(description), length_bounds(prompt)
    return max(0, fewest - length, length - most)


def visible(text: str) -> int:
    """Characters of `text` that are not white space."""
    return sum(not letter.isspace() for letter in text)
