"""The nano model's tokenizer: the shape of umt5's (Unigram pieces, Metaspace, `</s>` at the end), about 1,500 pieces.

python -m training.tokenizer [--out training/weights/tokenizer]
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ftfy
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nava_core.conditioning.text import count_tokens
from training import captions, captions_people
from training.captions_people import shot_caption
from training.lexicon import WORDS as SPOKEN_WORDS
from training.shots import KINDS, Shot, sample_shot

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path("training/weights/tokenizer")
# Shares of the kinds of shots in the corpus; `training.shots`.
KIND_SHARES = dict(zip(KINDS, (0.3, 0.15, 0.22, 0.13, 0.14, 0.06), strict=True))
# How often the corpus is taken to hold each spoken word: one piece each, at the start of a span and within it.
SPOKEN_COUNT = 400


@dataclass(frozen=True)
class Language:
    """Caption styles in one language, how many pieces to look for and the most characters of one."""

    styles: tuple[str, ...]
    pieces: int
    longest_piece: int


# Short Chinese pieces: whole clauses would save tokens and mean nothing in a sentence put differently.
LANGUAGES = (Language(("dense", "short"), 950, 5), Language(("english",), 560, 12))
# The start of a text is a space to this kind of tokenizer; a Chinese word is to be the same piece there and elsewhere.
SPACE = "\u2581"
SPOKEN = re.compile("<S>.*?<E>")
CHINESE_START = re.compile(f"{SPACE}[\u4e00-\u9fff]")
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
MARKS = ("<S>", "<E>", *(f"<extra_id_{number}>" for number in range(10)))
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Everyday punctuation and letters that the captions may lack and a person will type.
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.!?;:'\"-()~，。！？；：、“”（）《》…"


def speak_at_random(shot: Shot, rng: np.random.Generator) -> Shot:
    """`shot` with random words and moments for its people, for texts alone: nobody's voice has to fit in."""
    people = tuple(
        replace(
            person,
            words=tuple(str(word) for word in rng.choice(SPOKEN_WORDS, rng.integers(1, 4), replace=False)),
            start=float(rng.uniform(0, 1.5)),
        )
        for person in shot.people
    )
    return replace(shot, people=people)


def draw_text(rng: np.random.Generator, style: str, split: str = "all") -> str:
    """A caption of a fresh shot."""
    kind = str(rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
    return shot_caption(speak_at_random(sample_shot(rng, kind, split), rng), rng, style)


def corpus(count: int, seed: int, styles: tuple[str, ...]) -> Iterator[str]:
    """Captions without what is said in them, and with the punctuation that the text encoder's cleaning leaves ("，"
    becomes ",")."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield ftfy.fix_text(SPOKEN.sub("", draw_text(rng, styles[number % len(styles)])))


def train_tokenizer(texts: int = 12_000, seed: int = 0) -> Tokenizer:
    """A Unigram tokenizer over the caption corpus; whatever it does not know becomes bytes."""
    counts: Counter[str] = Counter()
    for language in LANGUAGES:
        counts += _count_pieces(language, texts, seed)
    counts += Counter(ALPHABET)
    for word in SPOKEN_WORDS:
        for piece in (word, SPACE + word):
            counts[piece] = max(counts[piece], SPOKEN_COUNT)
    total = sum(counts.values())
    return _unigram([(piece, math.log(count / total)) for piece, count in counts.most_common()])


def _count_pieces(language: Language, texts: int, seed: int) -> Counter[str]:
    """Pieces of one language and how often its captions use them.

    They are found by merging pairs (BPE): the library's Unigram trainer takes its candidates from the distinct words
    without their counts, and this corpus has too few words for that.
    """
    merged = Tokenizer(models.BPE(unk_token="<unk>"))
    merged.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Split(Regex(_fact_pattern()), behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=language.pieces, max_token_length=language.longest_piece, show_progress=False
    )
    merged.train_from_iterator(corpus(texts, seed, language.styles), trainer)
    used = Counter(token for text in corpus(texts, seed, language.styles) for token in merged.encode(text).tokens)
    for piece in [piece for piece in used if CHINESE_START.match(piece)]:
        count = used.pop(piece)
        used.update({SPACE: count, piece.removeprefix(SPACE): count})
    single = Counter(piece for piece in merged.get_vocab() if len(piece) == 1)
    return used + single


def _fact_pattern() -> str:
    """The Chinese words for facts. Pieces are learnt within them, never across: a piece for "white cube" would have no
    meaning where that pair is held out of the training."""
    facts = [*captions.WORDS.values(), *captions_people.WORDS.values(), captions_people.AMBIENT_SOUNDS]
    names = {name for values in facts for wordings in values.values() for name in wordings["zh"]}
    for wordings in (*captions.SOUNDS_ZH.values(), *captions.SIDES_ZH.values(), *captions_people.VOICES_ZH.values()):
        names |= {ftfy.fix_text(name) for name in wordings}
    return "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))


def _unigram(pieces: list[tuple[str, float]]) -> Tokenizer:
    """The tokenizer with these (piece, log probability), the special tokens before them and the bytes after them."""
    lowest = min(score for _, score in pieces) - 10.0
    vocabulary = [*((token, 0.0) for token in SPECIAL_TOKENS), *pieces, *((byte, lowest) for byte in BYTES)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B", special_tokens=[("</s>", SPECIAL_TOKENS.index("</s>"))]
    )
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in (*SPECIAL_TOKENS, *MARKS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerFast:
    """Write `tokenizer` as a transformers tokenizer folder and return it."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(MARKS),
        model_max_length=512,
    )
    wrapped.save_pretrained(folder)
    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the nano model's tokenizer on the captions of its world.")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--captions", type=int, default=12_000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = save_tokenizer(train_tokenizer(arguments.captions), arguments.out)
    rng = np.random.default_rng(1)
    dense = [draw_text(rng, "dense", "held_out") for _ in range(2000)]
    lengths = np.array([count_tokens(tokenizer, text, 512).used for text in dense])
    quantiles = ", ".join(f"{share:g}%: {np.percentile(lengths, share):.0f}" for share in (1, 50, 99, 100))
    logger.info("%d pieces; tokens of a dense caption: %s", len(tokenizer), quantiles)


if __name__ == "__main__":
    main()
