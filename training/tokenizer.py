"""The nano model's tokenizer: the shape of umt5's (Unigram pieces, Metaspace, `</s>` at the end), 1,000 pieces.

python -m training.tokenizer [--out assets/nava-nano/tokenizer]
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.captions import SIDES_ZH, SOUNDS_ZH, WORDS, caption
from training.world import sample_scene

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path("assets/nava-nano/tokenizer")


@dataclass(frozen=True)
class Language:
    """Caption styles in one language, how many pieces to look for and the most characters of one."""

    styles: tuple[str, ...]
    pieces: int
    longest_piece: int


# Short Chinese pieces: whole clauses would save tokens and mean nothing in a sentence put differently.
LANGUAGES = (Language(("dense", "short"), 700, 5), Language(("english",), 420, 12))
# The start of a text is a space to this kind of tokenizer; a Chinese word is to be the same piece there and elsewhere.
SPACE = "\u2581"
CHINESE_START = re.compile(f"{SPACE}[\u4e00-\u9fff]")
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
MARKS = ("<S>", "<E>", *(f"<extra_id_{number}>" for number in range(10)))
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Everyday punctuation and letters that the captions may lack and a person will type.
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.!?;:'\"-()~，。！？；：、“”（）《》…"


def corpus(captions: int, seed: int, styles: tuple[str, ...]) -> Iterator[str]:
    """Captions of fresh scenes, with the punctuation that the text encoder's cleaning leaves ("，" becomes ",")."""
    rng = np.random.default_rng(seed)
    for number in range(captions):
        yield ftfy.fix_text(caption(sample_scene(rng, "all"), rng, styles[number % len(styles)]))


def train_tokenizer(captions: int = 8_000, seed: int = 0) -> Tokenizer:
    """A Unigram tokenizer over the caption corpus; whatever it does not know becomes bytes."""
    counts: Counter[str] = Counter()
    for language in LANGUAGES:
        counts += _count_pieces(language, captions, seed)
    counts += Counter(ALPHABET)
    total = sum(counts.values())
    return _unigram([(piece, math.log(count / total)) for piece, count in counts.most_common()])


def _count_pieces(language: Language, captions: int, seed: int) -> Counter[str]:
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
    merged.train_from_iterator(corpus(captions, seed, language.styles), trainer)
    used = Counter(token for text in corpus(captions, seed, language.styles) for token in merged.encode(text).tokens)
    for piece in [piece for piece in used if CHINESE_START.match(piece)]:
        count = used.pop(piece)
        used.update({SPACE: count, piece.removeprefix(SPACE): count})
    single = Counter(piece for piece in merged.get_vocab() if len(piece) == 1)
    return used + single


def _fact_pattern() -> str:
    """The Chinese words for facts. Pieces are learnt within them, never across: a piece for "white cube" would have no
    meaning where that pair is held out of the training."""
    names = {name for values in WORDS.values() for wordings in values.values() for name in wordings["zh"]}
    for wordings in (*SOUNDS_ZH.values(), *SIDES_ZH.values()):
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
    parser.add_argument("--captions", type=int, default=8_000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = save_tokenizer(train_tokenizer(arguments.captions), arguments.out)
    rng = np.random.default_rng(1)
    dense = [ftfy.fix_text(caption(sample_scene(rng, "held_out"), rng, "dense")) for _ in range(2000)]
    lengths = np.array([len(tokenizer(text).input_ids) for text in dense])
    quantiles = ", ".join(f"{share:g}%: {np.percentile(lengths, share):.0f}" for share in (1, 50, 99, 100))
    logger.info("%d pieces; tokens of a dense caption: %s", len(tokenizer), quantiles)


if __name__ == "__main__":
    main()
