"""Speech spans locked away before a language model sees a prompt, and put back letter for letter into its reply.

The language model reads a placeholder for each span, so it cannot change what is said. `unlock` puts the spans into a
reply that names each placeholder once and in order, repairs a reply that can be read in one way only, and refuses any
other. `compose` puts the spans into a dialogue sentence of their own. Whatever the prompt and the reply, `parse_speech`
finds in the caption exactly the spans that it finds in the prompt.

All functions here are pure, and linear in the length of the reply.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from nava_core.conditioning.text import clean_text
from nava_core.speech import CLOSING, MARK, SpeechPrompt, SpeechSpan, parse_speech

PLACEHOLDER_WORDS = ("台词", "对白", "话音", "念白")
# What language models make of a placeholder's word: translations and traditional characters.
_OTHER_WORDS = "台詞|臺詞|台词|對白|对白|对话|セリフ|占位符|lines?|dialogue|dialog|speech|utterance|placeholder"
_OPEN, _CLOSE = r"[【\[［〔〖〘(（<＜《〈「『{]", r"[】\]］〕〗〙)）>＞》〉」』}]"
_NUMBER = r"(\d{1,6}|[一二三四五六七八九十]{1,3}|[①-⑩])"
_NUMERALS = {
    numeral: value for row in ("一二三四五六七八九十", "①②③④⑤⑥⑦⑧⑨⑩") for value, numeral in enumerate(row, start=1)
}
# White space, and letters that take no place: neither parts a placeholder for a reader.
_GAP = r"\s\u00ad\u200b-\u200f\u2060\ufeff"
# What stands between a placeholder's brackets and its word: that, or marks of speech and of Markdown.
_PADDING = rf"[{_GAP}~*`]{{0,4}}"
_BETWEEN = rf"[{_GAP}]{{0,3}}[:：#＃_\-]?[{_GAP}]{{0,3}}"

_LT, _GT = r"(?:[<＜]|&(?:amp;){0,4}(?:lt|LT|#60|#[xX]3[cC]);)", r"(?:[>＞]|&(?:amp;){0,4}(?:gt|GT|#62|#[xX]3[eE]);)"
# Speech marks, also those that the text encoder's cleaning would make of entities and full-width letters.
_ANY_MARKS = re.compile(rf"(?:(?:~~+|{_LT}/?(?:[SEＳＥ]|extra_id_\d{{1,3}}){_GT})[ \t]*)+")
_ENCODER_MARKS = re.compile(r"<(?:[SE]|extra_id_\d{1,3})>")
_MARK_LETTERS = re.compile(r"[<>&＜＞＆]")
# Without any of these no cleaning makes a mark; the last is how full-width letters begin when wrongly decoded.
_MAY_MAKE_MARKS = re.compile(rf"{_MARK_LETTERS.pattern}|ï¼")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff\ufeff]")
_WHITE = re.compile(r"\s+")
_LINE_ENDS = frozenset("\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_WIDE = r"\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff60“”‘’…—"
_IS_WIDE = re.compile(rf"[{_WIDE}]")
# Ends an unclosed span as a line end does, but leaves the caption one line of a text file.
_LINE_SEPARATOR = "\u2028"


@dataclass(frozen=True)
class LockedPrompt:
    """A prompt whose spans are locked. `word` occurs nowhere in its description.

    gaps: the description before, between and after the spans, one more than there are spans.
    """

    speech: SpeechPrompt
    word: str
    gaps: tuple[str, ...]

    @property
    def spans(self) -> tuple[SpeechSpan, ...]:
        return self.speech.spans

    @property
    def text(self) -> str:
        """What the language model reads: the prompt with a placeholder for each span."""
        return "".join(_interleave(self.gaps, self.placeholders))

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(placeholder(self.word, number + 1) for number in range(len(self.spans)))

    @cached_property
    def marked_spans(self) -> tuple[str, ...]:
        """Each span with its marks as typed, and closed."""
        return tuple(_closed(self.speech.source, span) for span in self.spans)

    @property
    def description(self) -> str:
        """The prompt without its speech."""
        return " ".join(self.gaps)


@dataclass(frozen=True)
class Unlocked:
    """A caption made of a reply. repairs: what had to be changed in it, empty where it was used as it is."""

    caption: str
    gaps: tuple[str, ...]
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A reply whose placeholders cannot be read in one way only, and why."""

    reason: str
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Mention:
    number: int
    start: int
    end: int
    exact: bool


def placeholder(word: str, number: int) -> str:
    """The placeholder of the `number`-th span, counted from 1."""
    return f"【{word}{number}】"


def lock(prompt: str) -> LockedPrompt:
    """Replace each speech span of `prompt` by a placeholder that its description cannot be confused with."""
    speech = parse_speech(prompt)
    edges = [0, *itertools.chain.from_iterable((span.mark_start, span.mark_end) for span in speech.spans), len(prompt)]
    gaps = tuple(prompt[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    seen = _folded("\n".join(gaps))
    word = next(word for word in _candidates() if _folded(word) not in seen)
    return LockedPrompt(speech, word, gaps)


def unlock(locked: LockedPrompt, reply: str) -> Unlocked | Refused:
    """Put the spans of `locked` into `reply`, one paragraph of text without thinking.

    A reply is read strictly first, then with damaged placeholders (other brackets and digits, spaces, no brackets,
    translated words). A reading counts where exactly one choice of placeholders holds each span once and in order;
    surplus placeholders and speech marks of the reply's own are removed.
    """
    count = len(locked.spans)
    for pattern in _readings(locked):
        mentions = list(_mentions(pattern, reply))
        chosen = _choose(_without_stutter(reply, [item for item in mentions if item.number <= count]), count)
        if chosen is not None:
            return _fill(locked, reply, mentions, chosen)
    found = {item.number for item in mentions}
    missing = tuple(number for number in range(1, count + 1) if number not in found)
    if missing:
        return Refused(f"{len(missing)} of {count} placeholders missing", missing)
    return Refused("placeholders repeated or out of order")


def compose(locked: LockedPrompt, description: str) -> str:
    """A caption of `description` with the spans in a dialogue sentence of their own at its end."""
    text = without_placeholders(locked, description)
    if not locked.spans:
        return join([text], locked)
    if text and text[-1] not in "。！？!?.…":
        text += "。"
    opening = "画面中的人物说：" if len(locked.spans) == 1 else "画面中的人物依次说："
    return join([text + opening, *["，"] * (len(locked.spans) - 1), "。"], locked)


def without_placeholders(locked: LockedPrompt, text: str) -> str:
    """`text` without anything that looks like a placeholder or a speech mark."""
    word = _spaced(locked.word)
    lead = r"(?:[，,]\s?)?[：:]?\s?[“\"「『]?"
    number = rf"{_BETWEEN}{_NUMBER}{_PADDING}"
    bracketed = rf"{_OPEN}{{1,2}}{_PADDING}(?:{word}[^\n。]{{0,20}}?|(?:{_OTHER_WORDS}){number}){_CLOSE}{{1,2}}"
    mention = re.compile(rf"{lead}(?:{bracketed}|{word}\s?\d{{1,6}})[”\"」』]?", re.IGNORECASE)
    return clean_gap(mention.sub("", text)).strip()


def join(gaps: Sequence[str], locked: LockedPrompt) -> str:
    """A caption of cleaned `gaps` with the spans of `locked` between them, as one paragraph.

    What stands beside a mark must not become a part of it: a `~` before, another mark or a combining character after.
    """
    cleaned = [clean_gap(gap) for gap in gaps]
    cleaned[0], cleaned[-1] = cleaned[0].lstrip(), cleaned[-1].rstrip()
    for index, gap in enumerate(cleaned):
        after_span, before_span = index > 0, index < len(cleaned) - 1
        if after_span and gap and unicodedata.category(gap[0]).startswith("M"):
            gap = f" {gap}"
        if before_span and (gap.endswith("~") or (after_span and not gap)):
            gap += " "
        cleaned[index] = gap
    caption = "".join(_interleave(cleaned, locked.marked_spans))
    if not cleaned[-1]:
        caption = caption.removesuffix(_LINE_SEPARATOR)
    assert same_spans(locked.speech, caption), "the marks of a caption follow from its prompt alone"
    return caption


def same_spans(speech: SpeechPrompt, caption: str) -> bool:
    """Whether `caption` says what `speech` says, letter for letter."""
    return [span.text for span in parse_speech(caption).spans] == [span.text for span in speech.spans]


def clean_gap(text: str) -> str:
    """`text` without speech marks and control characters, its line ends closed up."""
    text = _INVISIBLE.sub("", text)
    text = _ANY_MARKS.sub(_closed_up, text)
    text = _WHITE.sub(lambda found: _closed_up(found) if not _LINE_ENDS.isdisjoint(found[0]) else found[0], text)
    # Entities have more spellings than a pattern, such as `&ltS&#062`.
    if _MAY_MAKE_MARKS.search(text) and _ENCODER_MARKS.search(encoded := clean_text(text)):
        return clean_gap(_MARK_LETTERS.sub(" ", encoded))
    return text


class Preview:
    """Placeholders of a streamed reply replaced by their spans as they arrive, to be shown and nothing else."""

    def __init__(self, locked: LockedPrompt) -> None:
        self._longest = len(locked.word) + 8
        self._spans = dict(zip(locked.placeholders, locked.marked_spans, strict=True))
        self._pattern = re.compile(rf"【{re.escape(locked.word)}[0-9]{{1,6}}】")
        self._held = ""

    def feed(self, delta: str) -> str:
        """What can be shown now; the beginning of a placeholder waits for its end."""
        text = self._pattern.sub(lambda found: self._spans.get(found[0], found[0]), self._held + delta)
        start = text.rfind("【")
        hold = start if start >= 0 and len(text) - start < self._longest and "】" not in text[start:] else len(text)
        self._held = text[hold:]
        return text[:hold]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _interleave(gaps: Sequence[str], between: Sequence[str]) -> Iterator[str]:
    for gap, item in itertools.zip_longest(gaps, between, fillvalue=""):
        yield gap
        yield item


def _closed(source: str, span: SpeechSpan) -> str:
    """The span with its marks as typed, a missing closing mark added.

    `~~a~` cannot be closed by `~~`, which would end it a letter early, so that it becomes `<S>a~<E>`. Where its text
    holds `<E>` too, no pair of marks can carry it: it stays open, and a line end closes it as it did in the prompt. The
    next mark, if any, is then `<S>`, as it was in the prompt, since any other would have closed it there.
    """
    written = source[span.mark_start : span.mark_end]
    if span.closed:
        return written
    if written.startswith("~~<S>"):
        return f"{written}{CLOSING}{MARK}"
    if written.startswith("<S>"):
        return f"{written}{CLOSING}"
    if not span.text.endswith("~"):
        return f"{written}{MARK}"
    return f"<S>{span.text}{CLOSING}" if CLOSING not in span.text else f"{written}{_LINE_SEPARATOR}"


def _candidates() -> Iterator[str]:
    yield from PLACEHOLDER_WORDS
    for length in itertools.count(1):
        for letters in itertools.product("ABCDEFGHJKLMNPQRSTUVWXYZ", repeat=length):
            yield PLACEHOLDER_WORDS[0] + "".join(letters)


def _folded(text: str) -> str:
    """`text` without the differences that a reader, and so a language model, may overlook."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if not letter.isspace() and unicodedata.category(letter) != "Cf")


def _spaced(word: str) -> str:
    return f"[{_GAP}]?".join(map(re.escape, word))


def _readings(locked: LockedPrompt) -> Iterator[re.Pattern[str]]:
    """Patterns of a placeholder, from strict to generous; each has its number in a group."""
    exact = rf"(?<!【)【{re.escape(locked.word)}([1-9][0-9]{{0,5}})】(?!】)"
    word, other_word = _spaced(locked.word), rf"(?:{_OTHER_WORDS}){_BETWEEN}{_NUMBER}"
    loose = rf"{_OPEN}{{1,2}}{_PADDING}{word}{_BETWEEN}{_NUMBER}{_PADDING}{_CLOSE}{{1,2}}"
    bare = rf"{_OPEN}?{word}{_BETWEEN}(\d{{1,6}}){_CLOSE}?"
    other = rf"{_OPEN}{{1,2}}{_PADDING}{other_word}{_PADDING}{_CLOSE}{{1,2}}"
    yield re.compile(exact)
    yield re.compile(f"{exact}|{loose}", re.IGNORECASE)
    # A sign that reads "Line 1" may get brackets in a caption.
    if re.search(other_word, unicodedata.normalize("NFKC", locked.description), re.IGNORECASE) is None:
        yield re.compile(f"{exact}|{loose}|{other}", re.IGNORECASE)
        yield re.compile(f"{exact}|{loose}|{other}|{bare}", re.IGNORECASE)
    else:
        yield re.compile(f"{exact}|{loose}|{bare}", re.IGNORECASE)


def _mentions(pattern: re.Pattern[str], reply: str) -> Iterator[_Mention]:
    for found in pattern.finditer(reply):
        digits = next(group for group in found.groups() if group is not None)
        yield _Mention(_value(digits), found.start(), found.end(), found[1] is not None)


def _value(digits: str) -> int:
    if digits[0] not in _NUMERALS:
        return int(digits)
    if "十" not in digits:
        return _NUMERALS[digits] if len(digits) == 1 else 0
    tens, _, ones = digits.partition("十")
    return _NUMERALS.get(tens, 1 if not tens else 0) * 10 + _NUMERALS.get(ones, 0)


def _without_stutter(reply: str, mentions: list[_Mention]) -> list[_Mention]:
    """Without a placeholder that directly repeats the one before it: either stands at the same place."""
    kept: list[_Mention] = []
    for item in mentions:
        last = kept[-1] if kept else None
        if last is None or last.number != item.number or reply[last.end : item.start].strip(" \t\n，,、。"):
            kept.append(item)
    return kept


def _choose(mentions: list[_Mention], count: int) -> list[_Mention] | None:
    """The one way to choose placeholders 1..count in order, or None where there is none or more than one."""
    ways = [1] + [0] * count  # ways to have chosen the first n so far; 2 stands for more than one
    chosen: list[_Mention] = []
    for item in mentions:
        if item.number < 1:
            continue
        ways[item.number] = min(2, ways[item.number] + ways[item.number - 1])
        if item.number == len(chosen) + 1:
            chosen.append(item)
    return chosen if ways[count] == 1 else None


def _fill(locked: LockedPrompt, reply: str, mentions: list[_Mention], chosen: list[_Mention]) -> Unlocked:
    edges = [0, *itertools.chain.from_iterable((item.start, item.end) for item in chosen), len(reply)]
    raw = [reply[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    # A surplus placeholder may stand inside a gap; whatever could be read as one there goes.
    *_, widest = _readings(locked)
    gaps = [clean_gap(_unmentioned(widest, gap)) for gap in raw]
    repairs = []
    if not all(item.exact for item in chosen):
        repairs.append("damaged placeholders read")
    surplus = sum(1 for gap in raw for _ in widest.finditer(gap))
    if surplus:
        repairs.append(f"{surplus} surplus placeholder{'s' if surplus > 1 else ''} removed")
    if any(_ANY_MARKS.search(_INVISIBLE.sub("", gap)) for gap in raw):
        repairs.append("speech marks of the reply's own removed")
    if not repairs and "\0".join(gaps).strip() != "\0".join(raw).strip():
        repairs.append("line ends or control characters removed")
    return Unlocked(join(gaps, locked), tuple(gaps), tuple(repairs))


def _unmentioned(pattern: re.Pattern[str], gap: str) -> str:
    return pattern.sub(_closed_up, gap)


def _closed_up(found: re.Match[str]) -> str:
    """What takes the place of something removed: nothing between wide characters, else a space.

    Never nothing beside other letters: `<` and `S>` on both sides would make a mark.
    """
    before = found.string[max(0, found.start() - 1) : found.start()]
    after = found.string[found.end() : found.end() + 1]
    return "" if all(not side or _IS_WIDE.match(side) for side in (before, after)) else " "
