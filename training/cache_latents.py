"""Render clips of the nano world and store what the backbone trains on: normalised latents, voices and shots.

    python -m training.cache_latents --config training/configs/latents_stage2.yaml --out runs/latents_stage2 --workers 2

Clip number i of a bucket (a kind of shot at one frame size) is drawn with the seed (bucket, i), so a run can be
stopped, resumed and made longer. A shard is a `.safetensors` file of one bucket with `video` (clips, channels, latent
frames, height, width) and `audio` (clips, tokens, channels), float16, and `speakers` (clips, 2, 192), float32, the
embedding of each person's voice, zeros for nobody; beside it a `.json` list of the shots, from which captions are drawn
at training time. The first latent frame of `video` is also the encoding of the first frame alone: the autoencoder is
causal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soxr
import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nava_core.decode import encode_audio
from nava_core.mel import log_mel_spectrogram
from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from training import common, shots, speaking
from training.fast_vae import encode_moments, use_fast_norms
from training.shots import Shot
from training.video_windows import to_pixels
from training.voices import VoiceBank

SOUND_RATE, MEL_RATE = 48_000, 16_000
ENCODER_PREFIXES = ("encoder.", "quant_conv.")
SPEAKER_DIM, MOST_PEOPLE = 192, 2


@dataclass(frozen=True)
class Bucket:
    """Clips of one kind at one frame size; `size` is a key of `shots.SIZES`."""

    kind: str
    size: str
    clips: int

    def draw(self, number: int, split: str) -> tuple[Shot, np.random.Generator]:
        """Shot `number`, silent yet, and the generator for the rest of it."""
        rng = np.random.default_rng([number, *f"{self.kind} {self.size} {split}".encode()])
        return shots.sample_shot(rng, self.kind, split, self.size), rng


@dataclass(frozen=True)
class Shard:
    """Clips `start` up to `stop` of a bucket, in the file `path`."""

    bucket: Bucket
    start: int
    stop: int
    path: Path

    def is_done(self) -> bool:
        """Whether the file is there with all of its clips (a run made longer may have to redo a bucket's last one)."""
        if not self.path.exists():
            return False
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice("video").get_shape()[0] == self.stop - self.start


@dataclass(frozen=True)
class CachePlan:
    """What a worker needs to make any shard."""

    out: Path
    model: Path
    voices: Path | None
    buckets: tuple[Bucket, ...]
    shard: int

    def shards(self) -> list[Shard]:
        """All shards, the buckets' by turns, so that an unfinished cache holds of everything."""
        made = [
            [
                Shard(bucket, start, min(start + self.shard, bucket.clips), self._path(bucket, start // self.shard))
                for start in range(0, bucket.clips, self.shard)
            ]
            for bucket in self.buckets
        ]
        placed = [((number + 0.5) / len(part), shard) for part in made for number, shard in enumerate(part)]
        return [shard for _, shard in sorted(placed, key=lambda entry: entry[0])]

    def _path(self, bucket: Bucket, number: int) -> Path:
        return self.out / f"shard_{bucket.kind}_{bucket.size}_{number:05d}.safetensors"


class ClipEncoder:
    """Shots to normalised video latents, audio tokens and speaker embeddings."""

    def __init__(self, model: Path, bank: VoiceBank | None) -> None:
        self.bank = bank
        self.vae = use_fast_norms(AutoencoderKLWan.from_pretrained(model / "vae", torch_dtype=torch.float32)).eval()
        self.audio_vae = AutoencoderKLLTX2Audio.from_pretrained(model / "audio_vae", torch_dtype=torch.float32).eval()
        mean, std = self.vae.config["latents_mean"], self.vae.config["latents_std"]
        self.mean, self.std = (torch.tensor(values)[:, None, None, None] for values in (mean, std))
        self.speaker_encoder = None
        if (model / "speaker_encoder").exists():
            encoder = ReDimNetSpeakerEncoder.from_pretrained(model / "speaker_encoder", torch_dtype=torch.float32)
            self.speaker_encoder = encoder.eval()

    @torch.no_grad()
    def video(self, shot: Shot) -> torch.Tensor:
        """`(channels, latent_frames, height, width)`: `nava_core.decode.encode_video` in two chunks."""
        openings = speaking.openings(shot, self.bank) if self.bank else [np.zeros(shot.num_frames)] * len(shot.people)
        pixels = to_pixels(shots.render_frames(shot, openings))
        moments = encode_moments(self.vae, pixels[None])[0]
        return (moments[: len(self.mean)] - self.mean) / self.std

    @torch.no_grad()
    def audio(self, shot: Shot) -> torch.Tensor:
        """`(tokens, channels)`."""
        sound = speaking.render_sound(shot, self.bank, SOUND_RATE)
        waveform = soxr.resample(np.ascontiguousarray(sound.T), SOUND_RATE, MEL_RATE).T
        return encode_audio(self.audio_vae, log_mel_spectrogram(torch.from_numpy(np.ascontiguousarray(waveform))))

    @torch.no_grad()
    def speakers(self, shot: Shot) -> torch.Tensor:
        """`(MOST_PEOPLE, 192)`: the voices, from references that say other words; zeros where nobody speaks."""
        rows = torch.zeros(MOST_PEOPLE, SPEAKER_DIM)
        if self.speaker_encoder is not None and self.bank is not None:
            for row, person in zip(rows, shot.people, strict=False):
                if person.words:
                    row.copy_(self.speaker_encoder(torch.from_numpy(speaking.reference(person, self.bank))[None])[0])
        return rows


def write_shard(shard: Shard, encoder: ClipEncoder, split: str = "train") -> None:
    """Make one shard: the shots' JSON first, so that a shard that is there is complete."""
    drawn = []
    for number in range(shard.start, shard.stop):
        shot, rng = shard.bucket.draw(number, split)
        drawn.append(speaking.give_voices(shot, encoder.bank, rng, split) if encoder.bank else shot)
    tensors = {
        "video": torch.stack([encoder.video(shot) for shot in drawn]).half().contiguous(),
        "audio": torch.stack([encoder.audio(shot) for shot in drawn]).half().contiguous(),
        "speakers": torch.stack([encoder.speakers(shot) for shot in drawn]),
    }
    text = json.dumps([asdict(shot) for shot in drawn], ensure_ascii=False)
    common.write_atomically(shard.path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
    common.write_atomically(shard.path, lambda file: save_file(tensors, file))


def read_shards(folder: Path) -> Iterator[tuple[dict[str, torch.Tensor], list[Shot]]]:
    """Every finished shard of `folder` in order: its tensors and its shots."""
    for path in sorted(folder.glob("shard_*.safetensors")):
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        yield load_file(path), [shots.shot_from_dict(values) for values in stored]


def encoder_digest(model: Path) -> str:
    """Identifies what the latents come from: the encoders' weights and statistics, whatever the decoders are."""
    digest = hashlib.sha256()
    for path in sorted(
        p for part in ("vae", "audio_vae", "speaker_encoder") for p in (model / part).glob("*.safetensors")
    ):
        for name, tensor in sorted(load_file(path).items()):
            if path.parent.name == "speaker_encoder" or name.startswith((*ENCODER_PREFIXES, "latents_")):
                digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    config = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
    digest.update(json.dumps([config["latents_mean"], config["latents_std"]]).encode())
    return digest.hexdigest()


def check_folder(plan: CachePlan) -> None:
    """Refuse to mix latents of different encoders or shards of different sizes in one folder."""
    plan.out.mkdir(parents=True, exist_ok=True)
    path = plan.out / "cache.json"
    wanted = {"encoders": encoder_digest(plan.model), "shard": plan.shard}
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise ValueError(f"{plan.out} was made with {found}, this run would use {wanted}; give another --out")
    common.write_atomically(path, lambda file: file.write_text(json.dumps(wanted), encoding="utf-8"))


_worker_state: dict[str, tuple[CachePlan, ClipEncoder]] = {}


def _start_worker(plan: CachePlan) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bank = VoiceBank.load(plan.voices) if plan.voices else None
    _worker_state["state"] = plan, ClipEncoder(plan.model, bank)


def _make_shard(shard: Shard) -> str:
    write_shard(shard, _worker_state["state"][1])
    return shard.path.name


def main() -> None:
    parser = argparse.ArgumentParser(description="Store latents of world clips for the backbone's training.")
    parser.add_argument("--config", type=Path, default=Path("training/configs/latents_stage2.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/latents_stage2"))
    parser.add_argument("--model", type=Path, default=Path("training/weights"), help="holds vae/ and audio_vae/")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="what training.voices made")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    config = common.load_config(arguments.config)
    named = [(*name.split("/"), clips) for name, clips in config["clips"].items()]
    buckets = tuple(Bucket(kind, size, clips) for kind, size, clips in named)
    plan = CachePlan(arguments.out, arguments.model, arguments.voices, buckets, config["shard"])
    check_folder(plan)
    todo = [shard for shard in plan.shards() if not shard.is_done()]
    print(f"{len(todo)} of {len(plan.shards())} shards to make", flush=True)
    started = time.monotonic()
    with get_context("spawn").Pool(arguments.workers, _start_worker, (plan,)) as pool:
        for done, name in enumerate(pool.imap(_make_shard, todo), start=1):
            left = (time.monotonic() - started) / done * (len(todo) - done)
            print(f"{time.strftime('%H:%M:%S')} {name} written, {left / 60:.1f} minutes left", flush=True)


if __name__ == "__main__":
    main()
