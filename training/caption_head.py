"""What a caption says of its clip's looks: what the text encoder is asked while it learns with the backbone.

The gradient that reaches the encoder through the flow loss is small beside that of everything else in a picture: after
18,000 clips one could not read from its states who wears what. Captions cost almost nothing, so that it is asked of
more of them than there are clips in a batch. The head is dropped after training.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training import captions, captions_people
from training.middle_heads import label_loss
from training.picture_labels import CLASS_OF, CLASSES
from training.shots import Shot
from training.sound_labels import UNKNOWN

# People from left to right; the shape that falls or is struck; the ball that strikes.
QUESTIONS = (
    "backdrop", "first hair", "first skin", "first clothes", "second hair", "second skin", "second clothes", "shape",
    "ball",
)  # fmt: skip
HEADS = 4
WORDS = captions.WORDS | captions_people.WORDS


class Captions(NamedTuple):
    """Token ids and mask (captions, tokens), and the answers (captions, questions)."""

    ids: Tensor
    mask: Tensor
    answers: Tensor


def answers(shot: Shot, caption: str) -> Tensor:
    """The class of `picture_labels` that answers each question, (questions,); UNKNOWN of what `caption` leaves out."""
    found = {"backdrop": ("backdrop", shot.backdrop)}
    for order, person in zip(("first", "second"), sorted(shot.people, key=lambda person: person.x), strict=False):
        found |= {f"{order} {part}": (part, getattr(person, part)) for part in ("hair", "skin", "clothes")}
    if shot.scene is not None:
        found["shape"] = shot.scene.colour, shot.scene.shape
    if shot.roll is not None:
        found |= {"shape": (shot.roll.colour, shot.roll.shape), "ball": (shot.roll.ball_colour, "ball")}
    text = re.sub("<S>.*?<E>", "", caption).lower()
    named = {name for name, (part, value) in found.items() if _says(text, part, value)}
    return torch.tensor([CLASS_OF[found[name]] if name in named else UNKNOWN for name in QUESTIONS])


def _says(text: str, part: str, value: str) -> bool:
    """Whether one of the wordings of the part's value stands in `text`; the part of a shape is its colour."""
    facts = (("colour", part), ("shape", value)) if part in WORDS["colour"] else ((part, value),)
    wordings = [WORDS[fact][name] for fact, name in facts]
    return all(any(word in text for language in names.values() for word in language) for names in wordings)


class CaptionHead(nn.Module):
    """A query for each question that attends to the text's states (captions, tokens, `dim`), and names a class."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), dim) * dim**-0.5)
        self.attention = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.classes = nn.Linear(dim, CLASSES)

    def loss(self, states: Tensor, mask: Tensor, asked: Tensor) -> Tensor:
        """Cross entropy of the `asked` (captions, questions); mask (captions, tokens) is 0 where there is no text."""
        queries = self.queries.expand(len(states), -1, -1)
        read, _ = self.attention(queries, states, states, key_padding_mask=mask == 0, need_weights=False)
        return label_loss(self.classes(read), asked)
