"""Speech spans survive every reply: by cases, and by property over hostile prompts and replies."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nava_core.conditioning.text import clean_text
from nava_core.speech import parse_speech
from rewriter.backends.base import Chunk
from rewriter.locking import Preview, Refused, Unlocked, clean_gap, join, lock, same_spans, unlock
from rewriter.replies import History, Reply
from rewriter.results import RewriteResult
from rewriter.thinking import ThinkingSplitter

# Prompts and replies drawn, and how many kinds of hostile reply each prompt gets: 10,800 cases, in half a minute.
DRAWN = {"any reply": 2500, "hostile reply": 800, "well-formed reply": 1200, "several replies": 700}
KINDS_A_PROMPT = 8


def drawn(name: str) -> settings:
    return settings(max_examples=DRAWN[name], suppress_health_check=list(HealthCheck), derandomize=True)


MARKS = [
    "~~",
    "~",
    "~~~",
    "<S>",
    "<E>",
    "<extra_id_2>",
    "~~<S>",
    "<E>~~",
    " <extra_id_2>",
    "&lt;S&gt;",
    "＜S＞",
    "<",
    ">",
]
LETTERS = [
    "\n",
    "\r\n",
    "\u2028",
    "\x85",
    " ",
    "Hello",
    "你好",
    "，",
    "。",
    "S>",
    "\u0338",
    "\u0301",
    "\x00",
    "“",
    "台词",
]
LOOKALIKES = [
    "【台词1】",
    "【台词2】",
    "[对白1]",
    "【话音１】",
    "【台 词1】",
    "台词1",
    "【Line 1】",
    "【台词A1】",
    "【",
]
PROMPTS = st.one_of(
    st.lists(st.sampled_from(MARKS + LETTERS + LOOKALIKES), max_size=14).map("".join),
    st.text(max_size=40),
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=4)), max_size=12).map("".join),
)
# A reply names placeholders by number before the prompt's word is known.
TOKENS = [f"{{P{number}}}" for number in range(1, 5)]
DAMAGED = [
    "【{W}１】",
    "[{W}1]",
    "（{W} 2）",
    "{W}1",
    "【{W}1",
    "{W}2】",
    "【{W}一】",
    "【{W}9】",
    "【{W}】",
    "【{W}1、2】",
    "【Line 2】",
]
REPLIES = st.one_of(
    st.lists(st.sampled_from(MARKS + LETTERS + LOOKALIKES + TOKENS * 3 + DAMAGED), max_size=24).map("".join),
    st.lists(st.one_of(st.sampled_from(TOKENS), st.text(max_size=8)), max_size=12).map("".join),
    st.text(max_size=60),
)
SCENE = "写实风格，午后的光线照进安静的咖啡馆，一位女子坐在窗边，双手捧着白色的杯子，神情平静而专注。"


def with_words(reply: str, prompt: str) -> str:
    locked = lock(prompt)
    for number in range(1, 5):
        reply = reply.replace(f"{{P{number}}}", f"【{locked.word}{number}】")
    return reply.replace("{W}", locked.word)


def outcome_of(prompt: str, *replies: str, end: str = "stop", opened: bool = False) -> RewriteResult:
    """What the rewriter makes of these replies to `prompt`."""
    locked = lock(prompt)
    history = History(locked, "vllm")
    for text in replies:
        reply = Reply(locked, opened)
        reply.take(Chunk("text", text))
        reply.take(Chunk("end", end))
        history.judge(reply)
        if history.settled:
            break
    return history.result()


def spans(text: str) -> list[str]:
    return [span.text for span in parse_speech(text).spans]


def one_paragraph_between_spans(caption: str) -> bool:
    outside = parse_speech(caption).marked("", "")
    kept = "".join(span.text for span in parse_speech(caption).spans)
    return outside.count("\n") == kept.count("\n")


@given(PROMPTS, REPLIES)
@drawn("any reply")
def test_any_reply_to_any_prompt(prompt: str, reply: str) -> None:
    result = outcome_of(prompt, with_words(reply, prompt))
    assert spans(result.caption) == spans(prompt)
    assert one_paragraph_between_spans(result.caption)


def placed(prompt: str, between: str = "随后又轻轻地说：") -> str:
    """A reply that obeys."""
    return SCENE + between.join(lock(prompt).placeholders) + "。"


def shuffled(prompt: str, rng: random.Random) -> str:
    order = list(lock(prompt).placeholders)
    rng.shuffle(order)
    return SCENE + "，".join(order)


HOSTILE = {
    "translated": lambda prompt, rng: "A woman sits in a café and says: " + " then ".join(lock(prompt).placeholders),
    "translated placeholders": lambda prompt, rng: placed(prompt).replace(lock(prompt).word, "Line "),
    "split": lambda prompt, rng: placed(prompt).replace(lock(prompt).word, lock(prompt).word[:1] + "】【"),
    "merged": lambda prompt, rng: SCENE + "【" + "".join(lock(prompt).placeholders).replace("】【", "、"),
    "nested": lambda prompt, rng: placed(prompt).replace("【", "~~<S>【").replace("】", "】<E>~~"),
    "doubly nested": lambda prompt, rng: placed(prompt).replace("【", "【【").replace("】", "】】"),
    "missing one": lambda prompt, rng: placed(prompt).replace("1】", "】"),
    "missing all": lambda prompt, rng: SCENE,
    "repeated": lambda prompt, rng: placed(prompt) + placed(prompt),
    "stuttered": lambda prompt, rng: placed(prompt, "，").replace("】", "】" + "".join(lock(prompt).placeholders[:1])),
    "shuffled": shuffled,
    "inside words": lambda prompt, rng: placed(prompt, "bro").replace("。", "ken"),
    "invented speech": lambda prompt, rng: placed(prompt) + "旁人回答：~~好的~~，又说：<S>再见<E>",
    "unclosed marks": lambda prompt, rng: "~~" + placed(prompt) + "<S>",
    "text after": lambda prompt, rng: placed(prompt) + "\n\n注：占位符已原样保留。希望您满意！",
    "headings": lambda prompt, rng: "## 改写结果：\n\n" + placed(prompt),
    "fenced": lambda prompt, rng: f"```\n{placed(prompt)}\n```",
    "many paragraphs": lambda prompt, rng: placed(prompt).replace("，", "，\n\n"),
    "thinking": lambda prompt, rng: "<think>先看【" + lock(prompt).word + "1】怎么放</think>\n" + placed(prompt),
    "unfinished thinking": lambda prompt, rng: "<think>好的，用户要求我" + placed(prompt),
    "thinking without its opening": lambda prompt, rng: "嗯，用户想要" + placed(prompt) + "</think>" + placed(prompt),
    "thinking at the end": lambda prompt, rng: placed(prompt) + "</think>",
    "empty": lambda prompt, rng: " \n ",
    "combining characters": lambda prompt, rng: placed(prompt, "\u0338").replace("】", "】\u0338"),
    "tildes beside": lambda prompt, rng: placed(prompt).replace("【", "~【").replace("】", "】~"),
    "control characters": lambda prompt, rng: placed(prompt).replace("【", "~\x00~【") + "<\x00S>",
    "echo": lambda prompt, rng: f"原文：{lock(prompt).text}\n改写：{placed(prompt)}",
    "the prompt itself": lambda prompt, rng: prompt,
}


@given(PROMPTS, st.integers(0, 2**32))
@drawn("hostile reply")
def test_hostile_replies(prompt: str, seed: int) -> None:
    rng = random.Random(seed)
    for kind in rng.sample(sorted(HOSTILE), KINDS_A_PROMPT):
        reply = HOSTILE[kind](prompt, rng)
        result = outcome_of(prompt, reply, end=rng.choice(["length", "stop"]), opened=rng.random() < 0.5)
        assert spans(result.caption) == spans(prompt), kind
        assert one_paragraph_between_spans(result.caption), kind
        assert "think>" not in parse_speech(result.caption).marked("", "") or "think>" in prompt, kind


@given(
    PROMPTS, st.lists(st.sampled_from(["女子说：", "镜头缓缓推近，", "Hi ", "20~30 米", "。"]), min_size=1, max_size=6)
)
@drawn("well-formed reply")
def test_a_well_formed_reply_is_used_as_it_is(prompt: str, gaps: list[str]) -> None:
    locked = lock(prompt)
    between = (gaps * (len(locked.spans) + 1))[: len(locked.spans) + 1]
    reply = "".join(gap + name for gap, name in zip(between, [*locked.placeholders, ""], strict=True))
    unlocked = unlock(locked, reply)
    assert isinstance(unlocked, Unlocked)
    assert unlocked.repairs == ()
    assert unlocked.caption == "".join(
        gap + marked for gap, marked in zip(between, [*locked.marked_spans, ""], strict=True)
    ).strip().removesuffix("\u2028")
    assert spans(unlocked.caption) == spans(prompt)


@given(PROMPTS, st.lists(REPLIES, min_size=2, max_size=3))
@drawn("several replies")
def test_several_replies(prompt: str, replies: list[str]) -> None:
    result = outcome_of(prompt, *(with_words(reply, prompt) for reply in replies))
    assert spans(result.caption) == spans(prompt)
    assert result.attempts <= len(replies)


def test_ten_thousand_cases() -> None:
    assert sum(DRAWN.values()) + DRAWN["hostile reply"] * (KINDS_A_PROMPT - 1) >= 10_000


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("He says ~~Hello there~~.", "男子说：~~Hello there~~。"),
        ("他说：<S>你好<E>", "男子说：<S>你好<E>。"),
        ("~~<S>both<E>~~", "男子说：~~<S>both<E>~~。"),
        ("<S> <extra_id_2>written for the model<E>", "男子说：<S> <extra_id_2>written for the model<E>。"),
        ("~~never closed\nThe end.", "男子说：~~never closed~~。"),
        ("<S>never closed ~~ at all", "男子说：<S>never closed ~~ at all<E>。"),
        ("~~<S>never closed", "男子说：~~<S>never closed<E>~~。"),
        ("~~a tilde at its end~", "男子说：<S>a tilde at its end~<E>。"),
        ("~~no <E> pair can carry this~", "男子说：~~no <E> pair can carry this~\u2028。"),
        ("~~over\ntwo lines~~", "男子说：~~over\ntwo lines~~。"),
        ("~~~~", "男子说：~~~~。"),
        ("so~~", "男子说：~~~~。"),
        ("~~～全角，“引号”～ &lt;S&gt; ﬁ~~", "男子说：~~～全角，“引号”～ &lt;S&gt; ﬁ~~。"),
    ],
)
def test_spans_come_back_letter_for_letter(prompt: str, caption: str) -> None:
    unlocked = unlock(lock(prompt), "男子说：【台词1】。")
    assert isinstance(unlocked, Unlocked)
    assert (unlocked.caption, unlocked.repairs) == (caption, ())
    assert spans(caption) == spans(prompt)


@pytest.mark.parametrize(
    ("reply", "caption"),
    [
        ("甲说：[台词1]，乙说：（台词 ２）", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词一】，乙说：【台词二】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词1，乙说：台词2】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【Line 1】，乙说：【line 2】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词1】，乙说：【台词2】，【台词3】", "甲说：~~a~~，乙说：~~b~~，"),
        ("甲说：【台词1】【台词1】，乙说：【台词2】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词1】，乙说：【台词2】，甲又说：【台词1】", "甲说：~~a~~，乙说：~~b~~，甲又说："),
        ("甲说：~~【台词1】~~，乙说：<S>【台词2】<E>", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词1】，~~旁白~~乙说：【台词2】", "甲说：~~a~~，旁白乙说：~~b~~"),
        ("甲说：【台词1】\n\n乙说：【台词2】", "甲说：~~a~~乙说：~~b~~"),
        ("甲说：【台\u200b词1】，乙说：【台词\u20602】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【台词①】，乙说：【台词②】", "甲说：~~a~~，乙说：~~b~~"),
        ("甲说：【~~台词1~~】，乙说：【**台词2**】", "甲说：~~a~~，乙说：~~b~~"),
    ],
)
def test_one_reading_is_repaired(reply: str, caption: str) -> None:
    unlocked = unlock(lock("~~a~~ and ~~b~~"), reply)
    assert isinstance(unlocked, Unlocked)
    assert unlocked.caption == caption
    assert unlocked.repairs


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "甲说：【台词1】",
        "乙说：【台词2】，甲说：【台词1】",
        "甲说：【台词1】，又说：【台词1】，乙说：【台词2】",
        "甲说：【台词1、2】",
        "甲说：【台词】1，乙说：【台词】2",
    ],
)
def test_two_readings_or_none_are_refused(reply: str) -> None:
    assert isinstance(unlock(lock("~~a~~ and ~~b~~"), reply), Refused)


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("~~a~~", "台词"),
        ("墙上写着【台词1】，他说：~~a~~", "对白"),
        ("他背台 词和對白、对白、话音、念白：~~a~~", "台词A"),
        ("台词A1, 台词ａ, 台\n词, 对白 话音 念白 ~~a~~", "台词B"),
        ("~~他只在话里说到【台词1】~~", "台词"),
    ],
)
def test_the_placeholder_occurs_nowhere_in_the_description(prompt: str, word: str) -> None:
    assert lock(prompt).word == word


def test_of_two_replies_the_better_length_is_used() -> None:
    result = outcome_of("一间咖啡馆", SCENE * 3, SCENE[:20])
    assert (result.caption, result.outcome, result.attempts) == (SCENE * 3, "retried", 2)
    assert "characters, fewer than 180" in result.notes[0]
    assert outcome_of("一间咖啡馆", SCENE[:20], SCENE * 5).caption == SCENE * 5


def test_a_prompt_without_speech_gains_none() -> None:
    result = outcome_of("一间咖啡馆", SCENE * 4 + "他说：~~你好~~，【台词1】<S>再见<E>")
    assert spans(result.caption) == []
    assert result.outcome == "repaired"


def test_marks_that_the_text_encoder_would_make_are_removed() -> None:
    assert clean_gap("他说&lt;S&gt;你好&amp;lt;E&amp;gt;再＜extra_id_2＞见</S>") == "他说你好再见"
    assert clean_gap("<~~S>") == "< S>"


@pytest.mark.parametrize(
    "marks", ["&ltS&gt", "&#060;S&#062;", "&amplt;S&#38;gt;", "<\u206aS>", "<\x1fS>", "&＃60;S>", "ï¼œSï¼ž"]
)
def test_no_spelling_of_a_mark_reaches_the_text_encoder(marks: str) -> None:
    assert not re.search("<[SE]>", clean_text(clean_gap(f"她说{marks}走{marks.replace('S', 'E')}，~&lt~")))
    assert spans(clean_gap(f"~&lt;~ {marks}")) == []


def test_words_of_a_sign_are_no_placeholder() -> None:
    caption = outcome_of(
        "A metro sign reads Line 1. ~~Mind the gap~~", f"{SCENE * 4}指示牌《Line 1》，【台词1】"
    ).caption
    assert "《Line 1》，~~Mind the gap~~" in caption


@pytest.mark.parametrize(
    "unit", ["~~<S>", "【台词1】", "<think>", "&amp;", " ", "【", "~\n", "注：\n", "你好，", "台词", "<"]
)
def test_a_reply_of_100_kb_takes_linear_time(unit: str) -> None:
    prompt = "女人说：~~走吧~~，男人说：~~好~~"
    started = time.process_time()
    result = outcome_of(prompt, unit * (100_000 // len(unit)))
    assert spans(result.caption) == ["走吧", "好"]
    assert len(result.caption) < 1000
    assert time.process_time() - started < 10  # about 0.1 s; quadratic time would be minutes


def test_the_span_after_one_that_stays_open() -> None:
    prompt = "~~a<E>b~<S>c ~~ d<E> ~~e~~"
    caption = join(["甲：", "乙：", "丙：", "。"], lock(prompt))
    assert spans(caption) == spans(prompt) == ["a<E>b~", "c ~~ d", "e"]
    assert "\n" not in caption


def test_the_preview_shows_spans_in_their_places() -> None:
    locked = lock("~~a~~ and ~~b~~")
    preview = Preview(locked)
    shown = [preview.feed(letter) for letter in "甲【台词1】乙【台词2】丙【台"] + [preview.finish()]
    assert "".join(shown) == "甲~~a~~乙~~b~~丙【台"
    assert "【台词" not in "".join(shown)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "a", "</THINK>"]), max_size=12))
@settings(max_examples=200)
def test_thinking_is_told_apart_wherever_the_stream_is_cut(pieces: list[str]) -> None:
    def told(parts: list[str]) -> tuple[str, str]:
        splitter = ThinkingSplitter()
        found = [item for part in parts for item in splitter.feed(part)] + splitter.finish()
        return "".join(text for inside, text in found if inside), "".join(text for inside, text in found if not inside)

    assert told(list("".join(pieces))) == told(["".join(pieces)])


def test_same_spans_can_tell() -> None:
    assert not same_spans(parse_speech("~~a~~"), "~~b~~")
    assert not same_spans(parse_speech("~~a~~"), "a")


def hostile_table(prompt: str = "女人说：~~You came!~~，男人说：~~对不起，堵车。~~") -> str:
    """What becomes of each hostile reply, as a Markdown table; `python tests/test_rewriter_locking.py` prints it."""
    rows = ["| reply | first reply | after three of them |", "|---|---|---|"]
    for kind, make in HOSTILE.items():
        reply = make(prompt, random.Random(2)).replace(SCENE, SCENE * 5)
        once, thrice = outcome_of(prompt, reply), outcome_of(prompt, reply, reply, reply)
        used = once.outcome in ("as is", "repaired") and thrice.attempts == 1
        refused = once.outcome == "composed"
        reason = once.notes[0].partition("(")[2].partition(")")[0] if refused else "; ".join(once.notes)
        assert spans(thrice.caption) == spans(prompt)
        first = once.outcome if used else "asked again"
        rows.append(f"| {kind} | {first}{': ' if reason else ''}{reason} | {thrice.outcome} |")
    return "\n".join(rows)


def test_the_table_of_hostile_replies_can_be_made() -> None:
    assert hostile_table().count("\n") == len(HOSTILE) + 1


if __name__ == "__main__":
    print(hostile_table())
