"""A prompt -> token ids, text states and the places of its speakers (NAVA.md section 3, COMPONENTS.md "umt5")."""

from __future__ import annotations

import html
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ftfy

from nava_core.request import RequestError
from nava_core.speech import CLOSING, OPENING, SENTINEL, SpeechPrompt, SpeechSpan, parse_speech

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SHOWN_LETTERS = 40


@dataclass(frozen=True)
class TokenCount:
    """How much of the text encoder's window a prompt needs. All counts include the closing `</s>`."""

    used: int
    limit: int
    spans_cut: tuple[int, ...] = ()
    """Indices of the speech spans that the limit would cut, wholly or in part."""

    @property
    def cut(self) -> int:
        """Tokens that do not fit."""
        return max(0, self.used - self.limit)


@dataclass(frozen=True)
class TextConditioning:
    """What the text encoder made of a prompt: `embeds` (tokens, text_dim) and `ids` (tokens,), both without padding."""

    embeds: torch.Tensor
    ids: torch.Tensor
    speaker_positions: tuple[int, ...]
    token_count: TokenCount


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder reads it: the cleaned text and its token ids, whole, and the speakers' tokens."""

    text: str
    ids: list[int]
    speaker_positions: tuple[int, ...]
    span_ends: tuple[int, ...]
    """Index of the token that ends each span's closing mark."""


def clean_text(text: str) -> str:
    """The text encoder's own cleaning: ftfy, HTML entities twice, white space to single spaces."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped).strip()


def count_tokens(tokenizer: PreTrainedTokenizerFast, prompt: str | SpeechPrompt, max_tokens: int) -> TokenCount:
    """How many tokens `prompt` needs of `max_tokens`, and which speech spans would not fit.

    Raises RequestError where cleaning would destroy a speech mark.
    """
    return _count(tokenise_prompt(tokenizer, _as_speech(prompt)), max_tokens)


def encode_prompt(
    tokenizer: PreTrainedTokenizerFast, text_encoder: Any, prompt: str | SpeechPrompt, max_tokens: int
) -> TextConditioning:
    """Text states of `prompt`, in the text encoder's precision and on its device, and its speaker positions.

    A prompt that is longer than `max_tokens` is cut with a warning. Raises RequestError where that would cut a speech
    span, and where cleaning would destroy a speech mark.
    """
    import torch  # late: counting tokens needs none of it

    from nava_core.placement import working_device

    speech = _as_speech(prompt)
    tokens = tokenise_prompt(tokenizer, speech)
    count = _count(tokens, max_tokens)
    _warn_of_new_marks(speech.model_text, tokens.text)
    ids = tokens.ids
    if count.cut:
        _refuse_cut_spans(speech, count)
        logger.warning(
            "the prompt needs %d tokens and the text encoder reads %d: its last %d tokens are left out",
            count.used,
            count.limit,
            count.cut,
        )
        ids = [*ids[: max_tokens - 1], ids[-1]]
    input_ids = torch.tensor([ids], device=working_device(text_encoder))
    with torch.no_grad():
        states = text_encoder(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state
    return TextConditioning(states[0], input_ids[0].cpu(), tokens.speaker_positions, count)


def _as_speech(prompt: str | SpeechPrompt) -> SpeechPrompt:
    return parse_speech(prompt) if isinstance(prompt, str) else prompt


def _count(tokens: PromptTokens, max_tokens: int) -> TokenCount:
    last_kept = len(tokens.ids) - 1 if len(tokens.ids) <= max_tokens else max_tokens - 2
    spans_cut = tuple(index for index, end in enumerate(tokens.span_ends) if end > last_kept)
    return TokenCount(len(tokens.ids), max_tokens, spans_cut)


def _refuse_cut_spans(speech: SpeechPrompt, count: TokenCount) -> None:
    if not count.spans_cut:
        return
    first = count.spans_cut[0]
    others = f" and {len(count.spans_cut) - 1} more" if len(count.spans_cut) > 1 else ""
    raise RequestError(
        "prompt",
        f"the prompt needs {count.used} tokens and the text encoder reads {count.limit}: speech span {first + 1} "
        f"({_quote(speech.spans[first])}){others} would be cut. Shorten the description, or move the speech forward",
    )


def tokenise_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str | SpeechPrompt) -> PromptTokens:
    """The tokens of `prompt`, however many; what is trained on and what is made must read a prompt alike.

    Raises RequestError where cleaning would destroy a speech mark.
    """
    speech = _as_speech(prompt)
    cleaned, sentinels, ends = _clean_prompt(speech)
    encoding = tokenizer(cleaned, return_offsets_mapping=True, truncation=False, padding=False, verbose=False)
    ids: list[int] = encoding["input_ids"]
    offsets: list[tuple[int, int]] = encoding["offset_mapping"]
    sentinel_id = tokenizer.convert_tokens_to_ids(SENTINEL)
    positions = tuple(_token_at(offsets, character) for character in sentinels)
    if any(ids[position] != sentinel_id for position in positions):
        raise ValueError(
            f"the tokenizer does not know {SENTINEL} as one token, so speech has no speaker positions; "
            "load the tokenizer.json that belongs to the text encoder"
        )
    return PromptTokens(cleaned, ids, positions, tuple(_token_at(offsets, end - 1) for end in ends))


def _token_at(offsets: list[tuple[int, int]], character: int) -> int:
    """Index of the token that holds `character`, or of the one after it where a tokenizer leaves the character out."""
    return next(index for index, (_, end) in enumerate(offsets) if end > character)


def _clean_prompt(speech: SpeechPrompt) -> tuple[str, list[int], list[int]]:
    """The cleaned model text, the character where each span's sentinel starts, and the one after each closing mark.

    Cleaning reads the whole text at once and may shorten it or make new `<extra_id_2>`s out of entities and full-width
    letters, so that neither offsets nor a search can find our own marks afterwards. Therefore marks that occur nowhere
    else stand in for them while cleaning.
    """
    plain = clean_text(speech.model_text)
    number = 0
    while f"nava{number}" in plain:
        number += 1
    stand_ins = [f"<nava{number}S>", f"<nava{number}E>"]
    pieces = re.split("|".join(f"({mark})" for mark in stand_ins), clean_text(speech.marked(*stand_ins)))
    # re.split yields text, opening or None, closing or None, text, ...
    found = [opening or closing for opening, closing in zip(pieces[1::3], pieces[2::3], strict=True)]
    for index, span in enumerate(speech.spans):
        if found[2 * index : 2 * index + 2] != stand_ins:
            raise RequestError(
                "prompt",
                f"a mark of speech span {index + 1} ({_quote(span)}) would be lost: the letter after it is a combining "
                "character that Unicode joins with the mark. Delete that character, or put a space before it",
            )
    cleaned, sentinels, ends = pieces[0], [], []
    for mark, text in zip(found, pieces[3::3], strict=True):
        if mark == stand_ins[0]:
            sentinels.append(len(cleaned) + len(OPENING) - len(SENTINEL))
            cleaned += OPENING + text
        else:
            ends.append(len(cleaned) + len(CLOSING))
            cleaned += CLOSING + text
    return cleaned, sentinels, ends


def _warn_of_new_marks(before: str, after: str) -> None:
    new = [mark for mark in (SENTINEL, "<S>", CLOSING) if after.count(mark) > before.count(mark)]
    if new:
        logger.warning(
            "cleaning the prompt made %s out of HTML entities or full-width letters; that is no speech span. "
            "If one was meant, type it as ~~line~~",
            ", ".join(new),
        )


def _quote(span: SpeechSpan) -> str:
    text = span.text if len(span.text) <= SHOWN_LETTERS else f"{span.text[:SHOWN_LETTERS]}..."
    return f"“{text}”"
