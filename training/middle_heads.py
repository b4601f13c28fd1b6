"""What the backbone's own middle is asked while it learns: what a video token shows, how high that is and how its
camera moves, what sounds at an audio token and in whose voice.

The flow loss hardly depends on the words: said wrongly, they cost a percent or two of it beside when, how loudly and by
whom they are said, and a model learns them last. So it is with the colours that a caption names: where little noise is
left they are seen in the clip itself. A linear head that must name them from a middle layer, also where the clip is all
noise, can do so only by finding them in the text, and an impact only by finding it in the picture. It is dropped after
training. (Guided attention in speech synthesis and representation alignment in image models serve the same purpose.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nava_core.models.transformer_nava import NavaTransformer3DModel
from training import picture_labels, sound_labels
from training.canvas import CAMERAS
from training.sound_labels import UNKNOWN

VOICE_SCALE = 15.0  # of cosines, so that scores tell voices apart
# Errors of a place (in `picture_labels.UNIT`) below this count by their square: it is a pixel of 128.
GRAIN = 0.08


class MiddleHeads(nn.Module):
    """Linear heads on the tokens after the layer halfway through `transformer`."""

    def __init__(self, transformer: NavaTransformer3DModel) -> None:
        super().__init__()
        blocks = transformer.transformer_blocks
        dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.norm = nn.LayerNorm(dim)
        self.picture, self.sound = picture_labels.ClassScores(dim), nn.Linear(dim, sound_labels.CLASSES)
        self.distance = nn.Linear(dim, picture_labels.FRAMES)
        self.camera = nn.Linear(dim, len(CAMERAS))
        self.camera_path = nn.Linear(dim, 2 * picture_labels.FRAMES)
        self.voice = nn.Linear(dim, transformer.config.speaker_dim) if transformer.config.speaker_dim else None
        self._tokens: list[Tensor] = []
        blocks[len(blocks) // 2].register_forward_hook(lambda _block, _given, output: self._tokens.append(output))

    def losses(
        self,
        picture: Tensor | None,
        distances: Tensor | None,
        camera_paths: Tensor | None,
        cameras: Tensor,
        sound: Tensor,
        turns: Tensor,
        speakers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cross entropies of the last pass's tokens with what is seen and with what is heard; to the former the errors
        of distances and of camera paths are added.

        picture: the label of each video token (batch, video tokens), distances: of what moves, (batch, video tokens,
        FRAMES), NaN for none, and camera_paths: (batch, latent frames, 2 * FRAMES), see `picture_labels`; None without
        a picture. cameras: what the camera of each clip does, a number in CAMERAS (batch,), asked of every video token
        as its path is. sound: the label of each audio token (batch, audio tokens). turns: whose turn it is in (batch,
        audio tokens). speakers: the embeddings that the pass was given, in the order of speaking (batch, speakers,
        speaker_dim), zeros for none. 0 for what there is no picture of, or where all of the sound is UNKNOWN.
        """
        tokens = self.norm(self._tokens[-1].float())
        self._tokens.clear()
        seen = tokens.new_zeros(())
        if picture is not None:
            video = tokens[:, : picture.shape[1]]
            seen = label_loss(self.picture(video), picture)
            seen = seen + label_loss(self.camera(video), cameras[:, None].expand_as(picture))
            seen = seen + self._distance_loss(video, distances) + self._camera_loss(video, camera_paths)
        audio = tokens[:, -sound.shape[1] :]
        return seen, label_loss(self.sound(audio), sound) + self._voice_loss(audio, turns, speakers)

    def _distance_loss(self, video: Tensor, distances: Tensor | None) -> Tensor:
        """Of saying how far what moves is from where it sounds, at the tokens that show it."""
        if distances is None or distances.isnan().all():
            return video.new_zeros(())
        known = ~distances.isnan()
        return F.smooth_l1_loss(self.distance(video)[known], distances[known], beta=GRAIN)

    def _camera_loss(self, video: Tensor, paths: Tensor | None) -> Tensor:
        """Of saying where the camera is in each frame."""
        if paths is None:
            return video.new_zeros(())
        said = self.camera_path(video).unflatten(1, (paths.shape[1], -1))
        return F.smooth_l1_loss(said, paths[:, :, None].expand_as(said), beta=GRAIN)

    def _voice_loss(self, audio: Tensor, turns: Tensor, speakers: Tensor) -> Tensor:
        """Of naming, at each audio token, the one of all given embeddings whose turn it is."""
        given = speakers.square().sum(-1) > 0
        if self.voice is None or not given.any():
            return audio.new_zeros(())
        numbers = torch.where(given, given.flatten().cumsum(0).view_as(given) - 1, UNKNOWN)
        asked = numbers.gather(1, turns.clamp(min=0)).masked_fill(turns == UNKNOWN, UNKNOWN)
        named = F.normalize(self.voice(audio), dim=-1) @ F.normalize(speakers[given], dim=-1).T
        return label_loss(VOICE_SCALE * named, asked)


def label_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of `scores` (batch, places, classes) with the `labels` (batch, places) that are not UNKNOWN; 0
    where all are.
    """
    known = (labels != UNKNOWN).sum().clamp(min=1)
    scores, labels = scores.flatten(0, 1).float(), labels.flatten()
    return F.cross_entropy(scores, labels, ignore_index=UNKNOWN, reduction="sum") / known
