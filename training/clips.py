"""Cached clips as the backbone's batches, and captions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nava_core.conditioning.text import PromptTokens, tokenise_prompt
from training.cache_latents import read_cache, read_shards
from training.canvas import CAMERAS
from training.caption_head import (
    Captions,
    answers,
    camera_move,
    digits_of_pieces,
    last_named,
    moments,
    numbers_ending,
    places_of_pieces,
    speech_moments,
)
from training.captions_people import shot_caption
from training.picture_labels import camera_labels, distance_labels, picture_labels
from training.shots import LENGTHS, OPEN_KINDS, SECONDS, Shot, recolour, sample_shot, speakers
from training.sound_labels import UNKNOWN, sound_labels, speaking_labels
from training.speaking import give_voices
from training.voices import VoiceBank

PATCH = 2  # latents to a token's side
SHADED = 0.4  # of the captions of falls and rolls that are read without latents


@dataclass(frozen=True)
class Batch:
    """Clean latents (batch, channels, frames, height, width) and (batch, tokens, channels), and padded token ids.

    video: None where the cache holds sound alone.
    speakers: (batch, most speakers, 192), in the order of the text's speech spans; speaker_positions: for each sample
    the text rows that they take, none where the cache holds no voices. labels: (batch, tokens), see `sound_labels`;
    picture_labels: (batch, video tokens), distances: (batch, video tokens, frames) and camera_paths: (batch, latent
    frames, 2 * frames), see `training.picture_labels`, None without a video.
    cameras: (batch,), numbers in CAMERAS. turns: (batch, tokens), see `speaking_labels`. shots: what the clips are of.
    """

    video: Tensor | None
    audio: Tensor
    ids: Tensor
    mask: Tensor
    speakers: Tensor
    speaker_positions: list[tuple[int, ...]]
    labels: Tensor
    picture_labels: Tensor | None
    distances: Tensor | None
    camera_paths: Tensor | None
    cameras: Tensor
    turns: Tensor
    shots: list[Shot]


@dataclass
class _Group:
    """Clips of one shape, which can make a batch together."""

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    shots: list[Shot] = field(default_factory=list)
    joined: dict[str, Tensor] = field(default_factory=dict)
    chances: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def tokens(self) -> int:
        """What one clip costs: its video tokens and its audio tokens."""
        video = self.joined["video"][0, 0].numel() // PATCH**2 if "video" in self.joined else 0
        return video + self.joined["audio"].shape[1]


class CachedClips:
    """All cached clips of some folders in memory; captions are drawn anew each time a clip comes up.

    kinds: the share of the batches that clips of each kind of shot have, relative to one another, however many the
    cache holds; kinds that are not named are not drawn. Batches of larger clips hold fewer, so that all take as long.
    bank: of the voices that speak in them, where it is to be known when which word is said.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        tokenizer: PreTrainedTokenizerFast,
        max_tokens: int,
        kinds: dict[str, float],
        bank: VoiceBank | None = None,
    ):
        self.folders, self.kinds, self.bank = folders, kinds, bank
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        made_by = {read_cache(folder)["encoders"] for folder in folders}
        if len(made_by) > 1:
            raise ValueError(
                f"the latents in {' and '.join(map(str, folders))} come from different encoders; make all with one"
            )
        self.groups: list[_Group] = []
        self.refresh()

    def __len__(self) -> int:
        return sum(len(group.shots) for group in self.groups)

    def refresh(self) -> None:
        """Read what the folder holds by now, so that training can start while more is being made."""
        groups: dict[tuple[int, ...], _Group] = {}
        for tensors, shots in chain.from_iterable(map(read_shards, self.folders)):
            kept = [number for number, shot in enumerate(shots) if shot.kind in self.kinds]
            if not kept:
                continue
            shape = tuple(size for name in ("video", "audio") if name in tensors for size in tensors[name].shape[1:])
            group = groups.setdefault(shape, _Group())
            group.shots += [shots[number] for number in kept]
            for name, value in tensors.items():
                group.tensors.setdefault(name, []).append(value[kept])
        if not groups:
            raise ValueError(
                f"no latents of {', '.join(self.kinds)} in {' or '.join(map(str, self.folders))}; "
                "run python -m training.cache_latents first"
            )
        counts = Counter(shot.kind for group in groups.values() for shot in group.shots)
        for group in groups.values():
            group.joined = {name: torch.cat(values) for name, values in group.tensors.items()}
            group.tensors = {}
            group.chances = np.array([self.kinds[shot.kind] / counts[shot.kind] for shot in group.shots])
        self.groups = list(groups.values())

    def draw(
        self, rng: np.random.Generator, batch_size: int, empty_prompt: float, turns: np.random.Generator | None = None
    ) -> Batch:
        """`batch_size` clips of the smallest shape, or fewer of a larger one.

        turns: draws the shape; processes that share its seed draw clips of one shape.
        """
        group, index = self._choose(rng, batch_size, turns or rng)
        tensors = {name: value[index].float() for name, value in group.joined.items()}
        drawn = [group.shots[number] for number in index]
        tokens = [
            tokenise_prompt(self.tokenizer, "" if rng.random() < empty_prompt else shot_caption(shot, rng))
            for shot in drawn
        ]
        ids, mask = _pad(tokens, self.tokenizer, self.max_tokens)
        voices, voiced = _voices(tensors["speakers"], drawn)
        rows = [
            tuple(row for row in entry.speaker_positions if row < length - 1) if has_voices else ()
            for entry, length, has_voices in zip(tokens, mask.sum(1).tolist(), voiced, strict=True)
        ]
        audio = tensors["audio"]
        labels, spoken = (
            torch.stack([ask(shot, self.bank, audio.shape[1]) for shot in drawn])
            for ask in (sound_labels, speaking_labels)
        )
        seen = away = paths = None
        video = tensors.get("video")
        if video is not None:
            frames, height, width = video.shape[2:]
            grid = frames, height // PATCH, width // PATCH
            seen = torch.stack([picture_labels(shot, *grid) for shot in drawn])
            away = torch.stack([distance_labels(shot, row, frames) for shot, row in zip(drawn, seen, strict=True)])
            paths = torch.stack([camera_labels(shot, frames) for shot in drawn])
        cameras = torch.tensor([CAMERAS.index(shot.camera) for shot in drawn])
        return Batch(video, audio, ids, mask, voices, rows, labels, seen, away, paths, cameras, spoken, drawn)

    def _choose(self, rng: np.random.Generator, most: int, turns: np.random.Generator) -> tuple[_Group, Tensor]:
        """Clips of one shape: their group, and their numbers in it."""
        shares = np.array([group.chances.sum() for group in self.groups])
        group = self.groups[turns.choice(len(shares), p=shares / shares.sum())]
        count = max(1, most * min(group.tokens for group in self.groups) // group.tokens)
        return group, torch.from_numpy(rng.choice(len(group.shots), count, p=group.chances / group.chances.sum()))


class WorldCaptions:
    """Captions of shots drawn on the spot, and what they say: reading needs no latents, and never meets a shot twice.

    kinds: how often each kind of shot is drawn. bank: the voices that speak in them; without it nobody does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        max_tokens: int,
        kinds: dict[str, float],
        bank: VoiceBank | None = None,
    ) -> None:
        self.tokenizer, self.max_tokens, self.bank = tokenizer, max_tokens, bank
        self.kinds, shares = list(kinds), np.array(list(kinds.values()))
        self.shares = shares / shares.sum()
        self.places, self.digits = places_of_pieces(tokenizer), digits_of_pieces(tokenizer)

    def draw(self, rng: np.random.Generator, count: int) -> Captions:
        drawn = [
            sample_shot(rng, kind, seconds=float(rng.choice(LENGTHS)) if kind in OPEN_KINDS else SECONDS)
            for kind in rng.choice(self.kinds, count, p=self.shares)
        ]
        drawn = [recolour(shot, rng, "shaded") if rng.random() < SHADED else shot for shot in drawn]
        if self.bank is not None:
            drawn = [give_voices(shot, self.bank, rng) for shot in drawn]
        texts = [shot_caption(shot, rng) for shot in drawn]
        ids, mask = _pad([tokenise_prompt(self.tokenizer, text) for text in texts], self.tokenizer, self.max_tokens)
        said, when, cameras = (
            torch.stack([ask(*clip) for clip in zip(drawn, texts, strict=True)])
            for ask in (answers, moments, camera_move)
        )
        numbers = numbers_ending(self.digits[ids])
        if self.bank is not None:
            for row, (shot, text) in enumerate(zip(drawn, texts, strict=True)):
                spoken = speech_moments(self.tokenizer.convert_ids_to_tokens(ids[row].tolist()), shot, text, self.bank)
                numbers[row] = torch.where(spoken == UNKNOWN, numbers[row], spoken)
        return Captions(ids, mask, said, when, cameras, last_named(self.places[ids]), numbers)


def _pad(tokens: Sequence[PromptTokens], tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, (texts, longest); a text that is too long is cut before its last token."""
    lengths = [min(len(entry.ids), max_tokens) for entry in tokens]
    ids = torch.full((len(tokens), max(lengths)), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (entry, length) in enumerate(zip(tokens, lengths, strict=True)):
        ids[row, :length] = torch.tensor([*entry.ids[: length - 1], entry.ids[-1]])
        mask[row, :length] = 1
    return ids, mask


def _voices(stored: Tensor, shots: list[Shot]) -> tuple[Tensor, list[bool]]:
    """Embeddings in the order of speaking, and whether a sample has any (without a speaker encoder none has)."""
    ordered = torch.zeros_like(stored)
    for row, shot in enumerate(shots):
        order = speakers(shot)
        ordered[row, : len(order)] = stored[row, order]
    return ordered, [bool(row.any()) for row in ordered]
