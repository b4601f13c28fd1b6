"""What sounds at each audio token, a part of a word or a material that is struck, and who speaks.

`training.middle_heads` asks it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.lexicon import WORDS
from training.shots import Shot, speakers
from training.speaking import speech_end, utterance
from training.voices import VoiceBank
from training.world import FPS, contacts
from training.world_sound import MATERIALS

# Class 0 is silence; then the parts of each word, each of one or two tokens, then an impact on each material.
PARTS = 6
IMPACTS = 1 + PARTS * len(WORDS)
CLASSES = IMPACTS + len(MATERIALS)
TOKENS_PER_SECOND = 25
IMPACT_SECONDS = 0.1
UNKNOWN = -100


def sound_labels(shot: Shot, bank: VoiceBank | None, tokens: int) -> Tensor:
    """The class of each audio token, (tokens,); UNKNOWN where a voice is heard and there is no bank."""
    people = [person for person in shot.people if person.words]
    if people and bank is None:
        return torch.full((tokens,), UNKNOWN)
    labels = torch.zeros(tokens, dtype=torch.long)
    moments = (torch.arange(tokens) + 0.5) / TOKENS_PER_SECOND
    for shape, time in _impacts(shot):
        struck = (moments >= time) & (moments < time + IMPACT_SECONDS)
        labels[struck] = IMPACTS + list(MATERIALS).index(shape)
    for person in people:
        assert bank is not None
        for word, start, end in utterance(person, bank).words:
            share = (moments - person.start - start) / (end - start)
            inside = (share >= 0) & (share < 1)
            labels[inside] = 1 + PARTS * WORDS.index(word) + (share[inside] * PARTS).long()
    return labels


def speaking_labels(shot: Shot, bank: VoiceBank | None, tokens: int) -> Tensor:
    """Whose turn each audio token is in, the first's 0 and the second's 1, (tokens,); UNKNOWN where nobody speaks and
    where there is no bank.
    """
    labels = torch.full((tokens,), UNKNOWN)
    if bank is None:
        return labels
    moments = (torch.arange(tokens) + 0.5) / TOKENS_PER_SECOND
    for turn, number in enumerate(speakers(shot)):
        person = shot.people[number]
        labels[(moments >= person.start) & (moments < speech_end(person, bank))] = turn
    return labels


def _impacts(shot: Shot) -> list[tuple[str, float]]:
    """The shape that sounds and when, in seconds."""
    seconds = shot.num_frames / FPS
    impacts = [(shot.scene.shape, contact.time) for contact in contacts(shot.scene, seconds)] if shot.scene else []
    return [*impacts, (shot.roll.shape, shot.roll.contact)] if shot.roll else impacts
