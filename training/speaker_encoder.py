"""Train the speaker encoder: a voice's waveform -> 192 numbers, near to one another for one voice and far for others.

`python -m training.speaker_encoder --config training/configs/speaker_encoder.yaml --out runs/speaker_encoder [--resume]
[--minutes M]` leaves the finished model (bf16) in `runs/speaker_encoder/speaker_encoder`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import nn

from nava_core import ReDimNetSpeakerEncoder
from nava_core.mel import SAMPLING_RATE
from training.audio_vae import Trainer, run
from training.codec import Codec
from training.common import save_arrays
from training.sounds import OUTPUT_RATE
from training.timbre import equal_error_rate, labelled_pairs
from training.voices import Voice, VoiceBank

DECODED_NAME = "decoded.npz"


class MarginSoftmax(nn.Module):
    """Additive angular margin softmax (ArcFace, Deng et al., 2019): (batch, numbers) and class numbers -> loss."""

    def __init__(self, width: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width) / width**0.5)
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, strength: float) -> torch.Tensor:
        """strength: the share of the margin that is asked for, so that a young model can begin without."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-1 + 1e-6, 1 - 1e-6)
        own = torch.cos(torch.arccos(cosines.gather(1, labels[:, None])) + strength * self.margin)
        return F.cross_entropy(self.scale * cosines.scatter(1, labels[:, None], own), labels)


class SpeakerModel(nn.Module):
    """What is trained: the encoder, and the classes, which are left behind."""

    def __init__(self, config: dict[str, Any], classes: int) -> None:
        super().__init__()
        self.encoder = ReDimNetSpeakerEncoder(**config["model"])
        head = config["head"]
        self.head = MarginSoftmax(self.encoder.embedding_dim, classes, head["scale"], head["margin"])


def disturb(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What may happen to a voice on its way: level, noise of any colour, a tilted or narrower band, an echo."""
    sound = waveform * 10 ** (rng.uniform(-12, 4) / 20)
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(sound)
        frequency = np.linspace(0, 1, len(spectrum))
        tilt = 10 ** (rng.uniform(-8, 8) * (frequency - 0.3) / 20)
        band = 1 / (1 + (frequency / rng.uniform(0.4, 1.2)) ** 8)
        sound = np.fft.irfft(spectrum * tilt * band, len(sound))
    if rng.random() < 0.3:
        delay = int(rng.uniform(0.01, 0.06) * SAMPLING_RATE)
        sound[delay:] += rng.uniform(0.1, 0.4) * sound[:-delay]
    if rng.random() < 0.6:
        spectrum = np.fft.rfft(rng.standard_normal(len(sound)))
        spectrum *= (1 + np.arange(len(spectrum)) / 50) ** -rng.uniform(0, 1.2)
        noise = np.fft.irfft(spectrum, len(sound))
        level = np.sqrt(np.mean(sound**2) / np.mean(noise**2))
        sound = sound + noise * level * 10 ** (-rng.uniform(8, 40) / 20)
    return sound.astype(np.float32)


def decoded_references(
    bank: VoiceBank, voices: list[Voice], settings: dict[str, Any], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """References of some voices after the autoencoder and the vocoder: voice name -> float32 (samples,) at 16 kHz."""
    codec = Codec(settings["audio_vae"], settings["vocoder"])
    made = {}
    for index in rng.permutation(len(voices))[: settings["references"]]:
        sound = bank.reference(voices[index], rng, seconds=settings["seconds"])
        high = soxr.resample(sound, SAMPLING_RATE, OUTPUT_RATE)
        decoded = codec(np.stack([high, high]).astype(np.float32)).mean(axis=0)
        made[voices[index].name] = soxr.resample(decoded, OUTPUT_RATE, SAMPLING_RATE).astype(np.float32)
    return made


class SpeakerTrainer(Trainer):
    """Batches of short references of the training voices; each voice is a class."""

    model: SpeakerModel

    def build(self) -> SpeakerModel:
        self.bank = VoiceBank.load(self.config["data"]["voices"])
        self.speakers = self.bank.voices("train")
        return SpeakerModel(self.config, len(self.speakers))

    def prepare(self) -> None:
        """References are put together as they are needed, which is quick; only those from the codec are stored."""
        codec = self.config["data"]["codec"]
        self.decoded: dict[str, np.ndarray] = {}
        if not codec:
            return
        path = self.out / DECODED_NAME
        if not path.exists():
            save_arrays(
                path, decoded_references(self.bank, self.speakers, codec, np.random.default_rng(self.settings["seed"]))
            )
        with np.load(path) as stored:
            self.decoded = {name: stored[name] for name in stored.files}

    def _reference(self, voice: Voice, seconds: float) -> np.ndarray:
        length = round(seconds * SAMPLING_RATE)
        if voice.name in self.decoded and self.rng.random() < self.config["data"]["decoded_share"]:
            whole = self.decoded[voice.name]
            start = self.rng.integers(max(len(whole) - length, 1))
            return np.resize(whole[start : start + length], length)
        return self.bank.reference(voice, self.rng, seconds=seconds)

    def loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        settings, (shortest, longest) = self.settings, self.config["data"]["seconds"]
        labels = self.rng.integers(len(self.speakers), size=settings["batch_size"])
        seconds = self.rng.uniform(shortest, longest)
        waves = [disturb(self._reference(self.speakers[label], seconds), self.rng) for label in labels]
        embeddings = self.model.encoder(torch.from_numpy(np.stack(waves)))
        strength = min(1.0, self.progress / settings["margin_share"])
        loss = self.model.head(embeddings, torch.from_numpy(labels), strength)
        return loss, {"loss": loss.item(), "strength": strength, "norm": embeddings.detach().norm(dim=1).mean().item()}

    def averaged(self) -> ReDimNetSpeakerEncoder:
        """The encoder alone, in evaluation mode."""
        return super().averaged().encoder.eval()

    def measure(self, count: int, seed: int) -> dict[str, Any]:
        """Equal error rates of same-voice against other-voice pairs of 1.5 s, other words, by split."""
        model = self.averaged()
        result: dict[str, Any] = {"parameters": sum(value.numel() for value in model.parameters())}
        for split in ("train", "held_out"):
            pairs = labelled_pairs(self.bank, split, count, np.random.default_rng(seed))
            scores = [F.cosine_similarity(model(a[None]), model(b[None])).item() for a, b, _ in _tensors(pairs)]
            result[f"{split}_eer"] = round(equal_error_rate(scores, [pair.same for pair in pairs]), 4)
        return result


def _tensors(pairs: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    return [(torch.from_numpy(pair.first), torch.from_numpy(pair.second), pair.same) for pair in pairs]


if __name__ == "__main__":
    run(SpeakerTrainer, "Train the speaker encoder of nava-nano.")
