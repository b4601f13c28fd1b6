"""What a caption says of its clip's looks: what the text encoder is asked while it learns with the backbone.

The gradient that reaches the encoder through the flow loss is small beside that of everything else in a picture: after
18,000 clips one could not read from its states who wears what. Captions cost almost nothing, so that it is asked of
more of them than there are clips in a batch. The head is dropped after training.

Moments are asked for as well: they are said in two digits, and of captions with one in them 53% gave it away to a probe
of the states before that, so that pictures and sounds each came at a time of their own. They are asked for at the last
digit too: a token of the clip compares its own time with one text token at a time, and read together from two of them,
each with a digit, a moment is known and of no use. So it is with spoken words: the token of each is asked when it is
said, where the caption says when its speaker begins, and that at which a span begins, to which a voice is added, when
all of it is said.

Each token is asked too which place was named last before it. Without that the encoder answers who of two people wears
what as a coin would, however long it reads: in a caption that names a place and then looks, the place is what binds
them to a person, and nothing else asks for it to be carried along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nava_core.speech import SENTINEL
from training import captions, captions_people
from training.canvas import CAMERAS
from training.middle_heads import label_loss
from training.picture_labels import CLASS_OF, ClassScores
from training.shots import Shot, speakers
from training.sound_labels import UNKNOWN
from training.speaking import utterance
from training.tokenizer import SPOKEN
from training.voices import VoiceBank
from training.world import contacts

# People from left to right; the shape that falls or is struck; the ball that strikes.
QUESTIONS = (
    "backdrop", "first hair", "first skin", "first clothes", "second hair", "second skin", "second clothes", "shape",
    "ball",
)  # fmt: skip
# When the shape lands or is struck; when people begin to speak, from left to right. Classes are tenths of a second.
MOMENTS = ("contact", "first start", "second start")
TENTHS = 41
POINT = 10
# The pieces of a caption that name a place of a picture; those of camera moves (左移) name none.
PLACES = ("左[侧边方]?|左半边|left", "正中|中[央间部]|middle|cent(re|er)", "右[侧边方]?|右半边|right")
HEADS = 4
WORDS = captions.WORDS | captions_people.WORDS


class Captions(NamedTuple):
    """Token ids and mask (captions, tokens), the answers (captions, questions), the tenths of a second of MOMENTS
    (captions, moments), the number in CAMERAS (captions,), and for each token (captions, tokens) the place that was
    named last, 0 for none and then as in PLACES, and the tenths of a second of the number that ends with it, or at
    which it is spoken.
    """

    ids: Tensor
    mask: Tensor
    answers: Tensor
    moments: Tensor
    cameras: Tensor
    places: Tensor
    numbers: Tensor


def answers(shot: Shot, caption: str) -> Tensor:
    """The class of `picture_labels` that answers each question, (questions,); UNKNOWN of what `caption` leaves out."""
    found = {"backdrop": ("backdrop", shot.backdrop)}
    for order, person in zip(("first", "second"), sorted(shot.people, key=lambda person: person.x), strict=False):
        found |= {f"{order} {part}": (part, getattr(person, part)) for part in ("hair", "skin", "clothes")}
    if shot.scene is not None:
        found["shape"] = shot.scene.colour, shot.scene.shape
    if shot.roll is not None:
        found |= {"shape": (shot.roll.colour, shot.roll.shape), "ball": (shot.roll.ball_colour, "ball")}
    text = SPOKEN.sub("", caption).lower()
    named = {name for name, (part, value) in found.items() if _says(text, part, value)}
    return torch.tensor([CLASS_OF[found[name]] if name in named else UNKNOWN for name in QUESTIONS])


def moments(shot: Shot, caption: str) -> Tensor:
    """The tenths of a second of MOMENTS, (moments,); UNKNOWN of what `caption` does not say."""
    found = {"contact": contacts(shot.scene)[0].time} if shot.scene is not None else {}
    if shot.roll is not None:
        found["contact"] = shot.roll.contact
    for order, person in zip(("first", "second"), sorted(shot.people, key=lambda person: person.x), strict=False):
        found[f"{order} start"] = person.start
    said = _named_moments(caption)
    tenths = {name: f"{moment:.1f}" for name, moment in found.items()}
    return torch.tensor([round(10 * float(tenths[name])) if tenths.get(name) in said else UNKNOWN for name in MOMENTS])


def camera_move(shot: Shot, caption: str) -> Tensor:
    """The number in CAMERAS of what the camera does, (); UNKNOWN where `caption` does not say it."""
    said = _says(caption.lower(), "camera", shot.camera)
    return torch.tensor(CAMERAS.index(shot.camera) if said else UNKNOWN)


def _named_moments(caption: str) -> set[str]:
    """The seconds that `caption` names outside of speech, as it writes them."""
    return set(re.findall(r"\d\.\d", SPOKEN.sub("", caption)))


def _says(text: str, part: str, value: str) -> bool:
    """Whether one of the wordings of the part's value stands in `text`; the part of a shape is its colour."""
    facts = (("colour", part), ("shape", value)) if part in WORDS["colour"] else ((part, value),)
    wordings = [WORDS[fact][name] for fact, name in facts]
    return all(any(word in text for language in names.values() for word in language) for names in wordings)


def places_of_pieces(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The place that each piece of the vocabulary names, (pieces,): 0 for none, and then as in PLACES."""
    places = torch.zeros(len(tokenizer), dtype=torch.long)
    for piece, number in tokenizer.get_vocab().items():
        word = piece.removeprefix("▁")
        places[number] = next((place for place, names in enumerate(PLACES, 1) if re.fullmatch(names, word)), 0)
    return places


def last_named(named: Tensor) -> Tensor:
    """`named` (captions, tokens), 0 where a token names nothing, with each 0 replaced by the last name before it."""
    positions = torch.arange(named.shape[1]) * (named != 0)
    return named.gather(1, positions.cummax(1).values)


def digits_of_pieces(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The digits that each piece of the vocabulary begins and ends with, (pieces, 2): POINT of the point between two
    digits, -1 of all else. Pieces may hold more, as "约1" and "3秒时" do.
    """
    digits = torch.full((len(tokenizer), 2), -1)
    for piece, number in tokenizer.get_vocab().items():
        word = piece.removeprefix("▁")
        if word == ".":
            digits[number] = POINT
        elif word and not re.fullmatch(r"<.*>", word):
            digits[number] = torch.tensor([int(end) if end in "0123456789" else -1 for end in (word[0], word[-1])])
    return digits


def numbers_ending(digits: Tensor) -> Tensor:
    """The tenths of each number such as 1.3 at the token of its last digit, (captions, tokens), UNKNOWN elsewhere.

    digits: of the tokens, (captions, tokens, 2), as from `digits_of_pieces`.
    """
    numbers = torch.full(digits.shape[:2], UNKNOWN)
    whole, point, tenth = digits[:, :-2, 1], digits[:, 1:-1, 0], digits[:, 2:, 0]
    found = (point == POINT) & (whole >= 0) & (whole < POINT) & (tenth >= 0) & (tenth < POINT)
    value = 10 * whole + tenth
    numbers[:, 2:] = torch.where(found & (value < TENTHS), value, UNKNOWN)
    return numbers


def speech_moments(pieces: Sequence[str], shot: Shot, caption: str, bank: VoiceBank) -> Tensor:
    """The tenths of the middle of each spoken word at its token, and of all that a person says where a span begins,
    (tokens,), where `caption` says when the person begins; UNKNOWN elsewhere. Spans are in the order of speaking.
    """
    spoken = torch.full((len(pieces),), UNKNOWN)
    said = _named_moments(caption)
    starts = [number for number, piece in enumerate(pieces) if piece == SENTINEL]
    for start, number in zip(starts, speakers(shot), strict=False):
        person = shot.people[number]
        if f"{person.start:.1f}" not in said:
            continue
        said_by = utterance(person, bank)
        spoken[start] = min(round(10 * (person.start + said_by.seconds / 2)), TENTHS - 1)
        place = start
        for word, begin, end in said_by.words:
            place = next((at for at in range(place + 1, len(pieces)) if pieces[at].removeprefix("▁") == word), place)
            tenth = round(10 * (person.start + (begin + end) / 2))
            if place > start and tenth < TENTHS:
                spoken[place] = tenth
    return spoken


class CaptionHead(nn.Module):
    """A query for each question and moment and for the camera that attends to the text's states (captions, tokens,
    `dim`), and names a class, a tenth of a second or a move; and linear layers that name the last place and a moment's
    tenths at each token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(QUESTIONS), dim) * dim**-0.5)
        self.moment_queries = nn.Parameter(torch.randn(len(MOMENTS), dim) * dim**-0.5)
        self.camera_query = nn.Parameter(torch.randn(1, dim) * dim**-0.5)
        self.attention = nn.MultiheadAttention(dim, HEADS, batch_first=True)
        self.classes = ClassScores(dim)
        self.tenths = nn.Linear(dim, TENTHS)
        self.moves = nn.Linear(dim, len(CAMERAS))
        self.places = nn.Linear(dim, len(PLACES) + 1)
        self.numbers = nn.Linear(dim, TENTHS)

    def loss(self, states: Tensor, asked: Captions) -> Tensor:
        """Cross entropy of the answers, the moments, the camera's moves, the places, where there is text, and the
        numbers, from the states of its ids.
        """
        asking: list[Tensor] = [self.queries, self.moment_queries, self.camera_query]
        queries = torch.cat(asking).expand(len(states), -1, -1)
        read, _ = self.attention(queries, states, states, key_padding_mask=asked.mask == 0, need_weights=False)
        looks, times, move = read.split([len(part) for part in asking], dim=1)
        return (
            label_loss(self.classes(looks), asked.answers)
            + label_loss(self.tenths(times), asked.moments)
            + label_loss(self.moves(move), asked.cameras[:, None])
            + label_loss(self.places(states), asked.places.masked_fill(asked.mask == 0, UNKNOWN))
            + label_loss(self.numbers(states), asked.numbers)
        )
