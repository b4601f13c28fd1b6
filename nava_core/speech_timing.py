"""How long a line takes to say, estimated from its letters: enough to see whether a script fits its clip."""

from __future__ import annotations

import re

# A Chinese character is a syllable. Actors and news readers say 4 to 5 of them in a second.
HAN_SECONDS = 0.22
# English is read at 150 to 200 words a minute with its pauses: 4.5 to 5 syllables in a second without them.
SYLLABLE_SECONDS = 0.21
# Japanese is said at 7 to 8 kana (morae) in a second; a Korean block is a syllable.
KANA_SECONDS = 0.13
HANGUL_SECONDS = 0.19
# A digit is one syllable in Chinese, one or two in English, and in larger numbers a word for its place comes with it.
DIGIT_SECONDS = 0.28
# Within a line; at its end nobody waits. A comma is a breath, a full stop a breath and a new start.
COMMA_SECONDS = 0.25
STOP_SECONDS = 0.45
DASH_SECONDS = 0.4

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7af]")
_PAUSES = (
    (re.compile(r"[.!?。！？]+(?![\w.])|\n+"), STOP_SECONDS),
    (re.compile(r"[,;:，、；：]+(?!\d)"), COMMA_SECONDS),
    (re.compile(r"…+|—+|--+"), DASH_SECONDS),
)
_VOWELS = re.compile(r"[aeiouyà-öø-ÿ]+")
_SILENT_E = re.compile(r"[^aeiouyl]e[ds]?$|[^aeiouy]es$")


def spoken_seconds(text: str) -> float:
    """Seconds that a speaker takes for `text`, its inner pauses included; 0 where there is nothing to say."""
    spoken = text.strip().strip(".,;:!?…—-。，、；：！？\"'“”‘’ \t\r\n")
    seconds = 0.0
    for script, each in ((_HAN, HAN_SECONDS), (_KANA, KANA_SECONDS), (_HANGUL, HANGUL_SECONDS)):
        spoken, count = script.subn(" ", spoken)
        seconds += count * each
    seconds += sum(character.isdigit() for character in spoken) * DIGIT_SECONDS
    seconds += sum(syllables(word) for word in _WORD.findall(spoken)) * SYLLABLE_SECONDS
    if seconds == 0.0:
        return 0.0
    return seconds + sum(len(pause.findall(spoken)) * each for pause, each in _PAUSES)


def syllables(word: str) -> int:
    """The syllables of a word in Latin letters, by its groups of vowels; at least one."""
    letters = word.lower()
    if len(word) > 1 and word.isupper() and not _VOWELS.search(letters):
        return len(word)  # said letter by letter, as in TV
    groups = len(_VOWELS.findall(letters))
    return max(groups - (groups > 1 and bool(_SILENT_E.search(letters))), 1)
