"""What sounds at each audio token: what the backbone's own middle is asked while it learns to speak and to strike.

The flow loss hardly depends on the words: said wrongly, they cost a percent or two of it beside when, how loudly and by
whom they are said, and a model learns them last. A linear head that must name the word from a middle layer, also where
the sound is all noise, can do so only by finding the word's place in the text, and an impact's only by finding it in
the picture. It is dropped after training. (Guided attention in speech synthesis and representation alignment in image
models serve the same purpose.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nava_core.models.transformer_nava import NavaTransformer3DModel
from training.lexicon import WORDS
from training.shots import Shot
from training.speaking import utterance
from training.voices import VoiceBank
from training.world import FPS, contacts
from training.world_sound import MATERIALS

# Class 0 is silence; then the beginning, middle and end of each word, then an impact on each material.
PARTS = 3
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


def _impacts(shot: Shot) -> list[tuple[str, float]]:
    """The shape that sounds and when, in seconds."""
    seconds = shot.num_frames / FPS
    impacts = [(shot.scene.shape, contact.time) for contact in contacts(shot.scene, seconds)] if shot.scene else []
    return [*impacts, (shot.roll.shape, shot.roll.contact)] if shot.roll else impacts


class SoundHead(nn.Module):
    """Names what sounds at each audio token from what a layer halfway through `transformer` has made of it."""

    def __init__(self, transformer: NavaTransformer3DModel) -> None:
        super().__init__()
        blocks = transformer.transformer_blocks
        dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.norm, self.classes = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)
        self._tokens: list[Tensor] = []
        blocks[len(blocks) // 2].register_forward_hook(lambda _block, _given, output: self._tokens.append(output))

    def loss(self, labels: Tensor) -> Tensor:
        """Cross entropy of the last pass's audio tokens with `labels` (batch, tokens); 0 where all are UNKNOWN."""
        tokens = self._tokens[-1][:, -labels.shape[1] :]
        self._tokens.clear()
        if bool((labels == UNKNOWN).all()):
            return tokens.new_zeros(())
        return F.cross_entropy(
            self.classes(self.norm(tokens)).flatten(0, 1).float(), labels.flatten(), ignore_index=UNKNOWN
        )
