"""Counting a prompt's tokens where the model is not, and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from nava_core.conditioning.text import TokenCount


class TokenCounter:
    """`count_tokens` over a tokenizer's JSON. May be called from any thread.

    tokenizer: as `tokenizers` writes it; None where the model has none, and nothing can be counted. limit: how many
    tokens the text encoder reads.
    """

    def __init__(self, tokenizer: str | None, limit: int):
        self._backend = None if tokenizer is None else _Backend(tokenizer)
        self._limit = limit

    def __call__(self, prompt: str) -> TokenCount | None:
        if self._backend is None:
            return None
        from nava_core.conditioning.text import count_tokens

        return count_tokens(self._backend, prompt, self._limit)  # type: ignore[arg-type]


class _Backend:
    """The part of a `PreTrainedTokenizerFast` that counting uses. Its tokenizer never changes, so threads share it."""

    def __init__(self, tokenizer: str):
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        encoding = self._tokenizer.encode(text)
        return {"input_ids": encoding.ids, "offset_mapping": encoding.offsets}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)
