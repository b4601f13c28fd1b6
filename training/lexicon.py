"""The words that the small model can say: short, and far from one another in sound."""

from __future__ import annotations

# Word -> its American pronunciation in the phoneme alphabet of the Kokoro family of voices (misaki), where capitals
# are diphthongs. The other voices read the spelling.
PRONUNCIATIONS: dict[str, str] = {
    "hello": "həlˈO",
    "yes": "jˈɛs",
    "go": "ɡˈO",
    "please": "plˈiz",
    "water": "wˈɔɾəɹ",
    "music": "mjˈuzɪk",
    "apple": "ˈæpᵊl",
    "garden": "ɡˈɑɹdᵊn",
    "window": "wˈɪndO",
    "yellow": "jˈɛlO",
    "purple": "pˈɜɹpᵊl",
    "seven": "sˈɛvən",
    "tiger": "tˈIɡəɹ",
    "summer": "sˈʌməɹ",
    "ocean": "ˈOʃᵊn",
    "happy": "hˈæpi",
    "dance": "dˈæns",
    "blue": "blˈu",
    "fire": "fˈIəɹ",
    "moon": "mˈun",
    "coffee": "kˈɔfi",
    "river": "ɹˈɪvəɹ",
    "cheese": "ʧˈiz",
    "today": "tədˈA",
    "robot": "ɹˈObˌɑt",
    "banana": "bənˈænə",
    "stop": "stˈɑp",
    "night": "nˈIt",
}
WORDS: tuple[str, ...] = tuple(PRONUNCIATIONS)
MOST_WORDS = 4


def check_words(words: object) -> tuple[str, ...]:
    """The words of a span as a tuple; raises ValueError naming what is not 1 to 4 of WORDS."""
    if isinstance(words, str):
        words = words.split()
    if not isinstance(words, list | tuple) or not 1 <= len(words) <= MOST_WORDS:
        raise ValueError(f"the words are {words!r}; give 1 to {MOST_WORDS} of: {' '.join(WORDS)}")
    for word in words:
        if word not in PRONUNCIATIONS:
            raise ValueError(f"{word!r} is not a word that the small model knows; it knows: {' '.join(WORDS)}")
    return tuple(words)
