"""Render clips of the nano world and store what the backbone trains on: normalised latents, voices and shots.

    python -m training.cache_latents --config training/configs/latents_stage2.yaml --out runs/latents_stage2 --workers 2

Clip number i of a bucket (a kind of shot at one frame size and length) is drawn with the seed (bucket, i), so a run can
be stopped, resumed and made longer. A shard is a `.safetensors` file of one bucket with `video` (clips, channels,
latent frames, height, width) and `audio` (clips, tokens, channels), float16; beside it a `.json` list of the shots,
from which captions are drawn at training time, and, once there is a speaker encoder, a file `voices_...` with
`speakers` (clips, 2, 192), float32, the embedding of each person's voice, zeros for nobody. The first latent frame of
`video` is also the encoding of the first frame alone: the autoencoder is causal. With `sound_only` in the config
nothing is drawn or encoded but the sound. `voices` names those that speak, where not all are to.
`first` is the number of each bucket's first clip: from another one on, a cache holds clips that no earlier one had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nava_core.decode import encode_audio
from nava_core.mel import HOP_LENGTH, SAMPLING_RATE
from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from training import common, shots, speaking
from training.fast_vae import encode_moments, use_fast_norms
from training.shots import Shot
from training.sounds import OUTPUT_RATE, make_clip
from training.video_windows import to_pixels
from training.voices import VoiceBank
from training.world import FPS

ENCODER_PREFIXES = ("encoder.", "quant_conv.")
# Seconds of sound after a clip, which its last mel frames see: of a sound that is reflected at its end, what rings on
# there would look like an impact.
TAIL = 0.1
SPEAKER_DIM, MOST_PEOPLE = 192, 2
CACHE_FILE = "cache.json"


@dataclass(frozen=True)
class Bucket:
    """Clips of one kind, frame size and length; `size` is a key of `shots.SIZES`."""

    kind: str
    size: str
    clips: int
    seconds: float = shots.SECONDS
    recoloured: str = ""
    first: int = 0

    @classmethod
    def from_config(cls, name: str, clips: int, first: int = 0) -> Bucket:
        """Of "kind/size", or "kind/size/seconds"; after either a word of `shots.RECOLOURED` may follow, of
        which "faint" draws stars alone.
        """
        kind, size, *rest = name.split("/")
        recoloured = rest.pop() if rest[-1:] and rest[-1] in shots.RECOLOURED else ""
        return cls(kind, size, clips, float(rest[0]) if rest else shots.SECONDS, recoloured, first)

    @property
    def name(self) -> tuple[str, ...]:
        """Kind, size, the length where it is another than all clips once had, and how they are recoloured."""
        length = [f"{self.seconds:g}"] if self.seconds != shots.SECONDS else []
        return (self.kind, self.size, *length, *([self.recoloured] if self.recoloured else []))

    def draw(self, number: int, split: str) -> tuple[Shot, np.random.Generator]:
        """Shot `number`, silent yet, and the generator for the rest of it."""
        rng = np.random.default_rng([self.first + number, *" ".join((*self.name, split)).encode()])
        shot = shots.sample_shot(rng, self.kind, split, self.size, self.seconds)
        while self.recoloured == "faint" and (body := shot.scene or shot.roll) and body.shape != "star":
            shot = shots.sample_shot(rng, self.kind, split, self.size, self.seconds)
        return (shots.recolour(shot, rng, self.recoloured) if self.recoloured else shot), rng


@dataclass(frozen=True)
class Shard:
    """Clips `start` up to `stop` of a bucket, in the file `path`."""

    bucket: Bucket
    start: int
    stop: int
    path: Path

    @property
    def voices(self) -> Path:
        """The file of its speaker embeddings."""
        return voices_path(self.path)

    def is_done(self) -> bool:
        """Whether the file is there with all of its clips (a run made longer may have to redo a bucket's last one)."""
        return self._holds(self.path, "audio")

    def has_voices(self, digest: str | None) -> bool:
        """Whether its embeddings are there, by the speaker encoder of this digest; None asks for none."""
        return digest is None or (self._holds(self.voices, "speakers") and _metadata(self.voices)["encoder"] == digest)

    def _holds(self, path: Path, name: str) -> bool:
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name).get_shape()[0] == self.stop - self.start


def voices_path(path: Path) -> Path:
    """Where the speaker embeddings of the shard at `path` are."""
    return path.with_name(path.name.replace("shard_", "voices_"))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@dataclass(frozen=True)
class CachePlan:
    """What a worker needs to make any shard."""

    out: Path
    model: Path
    voices: Path | None
    buckets: tuple[Bucket, ...]
    shard: int
    sound_only: bool = False
    names: tuple[str, ...] = ()

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
        return self.out / f"shard_{'_'.join(bucket.name)}_{number:05d}.safetensors"


class ClipEncoder:
    """Shots to normalised video latents, audio tokens and speaker embeddings.

    precision: of the video, as in `common.mixed_precision`. bfloat16 takes half of the time of float32, and is 1.4% of
    the latents' spread from it.
    """

    def __init__(self, model: Path, bank: VoiceBank | None, with_video: bool = True, precision: str = "auto") -> None:
        self.bank, self.precision = bank, precision
        self.audio_vae = AutoencoderKLLTX2Audio.from_pretrained(model / "audio_vae", torch_dtype=torch.float32).eval()
        self.vae: AutoencoderKLWan | None = None
        if with_video:
            self.vae = use_fast_norms(AutoencoderKLWan.from_pretrained(model / "vae", torch_dtype=torch.float32)).eval()
            mean, std = self.vae.config["latents_mean"], self.vae.config["latents_std"]
            self.mean, self.std = (torch.tensor(values)[:, None, None, None] for values in (mean, std))
        self.speaker_encoder = None
        if (model / "speaker_encoder").exists():
            encoder = ReDimNetSpeakerEncoder.from_pretrained(model / "speaker_encoder", torch_dtype=torch.float32)
            self.speaker_encoder = encoder.eval()

    @torch.no_grad()
    def video(self, shot: Shot) -> torch.Tensor:
        """`(channels, latent_frames, height, width)`: `nava_core.decode.encode_video` in two chunks."""
        if self.vae is None:
            raise ValueError("this encoder was made for sound alone; make it with_video")
        openings = speaking.openings(shot, self.bank) if self.bank else [np.zeros(shot.num_frames)] * len(shot.people)
        pixels = to_pixels(shots.render_frames(shot, openings))
        with common.mixed_precision(self.precision):
            moments = encode_moments(self.vae, pixels[None])[0].float()
        return (moments[: len(self.mean)] - self.mean) / self.std

    def audio(self, shot: Shot) -> torch.Tensor:
        """`(tokens, channels)`."""
        return sound_tokens(self.audio_vae, shot, self.bank)

    @torch.no_grad()
    def speakers(self, shot: Shot) -> torch.Tensor:
        """`(MOST_PEOPLE, 192)`: the voices, from references that say other words; zeros where nobody speaks."""
        rows = torch.zeros(MOST_PEOPLE, SPEAKER_DIM)
        if self.speaker_encoder is not None and self.bank is not None:
            for row, person in zip(rows, shot.people, strict=False):
                if person.words:
                    row.copy_(self.speaker_encoder(torch.from_numpy(speaking.reference(person, self.bank))[None])[0])
        return rows


def sound_mel(shot: Shot, bank: VoiceBank | None) -> torch.Tensor:
    """The log-mel of the shot's own sound, `(2, frames, 64)`."""
    frames = round(shot.num_frames / FPS * SAMPLING_RATE) // HOP_LENGTH + 1
    return make_clip(speaking.render_sound(shot, bank, OUTPUT_RATE, TAIL)).mel[:, :frames]


@torch.no_grad()
def sound_tokens(audio_vae: AutoencoderKLLTX2Audio, shot: Shot, bank: VoiceBank | None) -> torch.Tensor:
    """The shot's own sound as audio latents, `(tokens, channels)`."""
    return encode_audio(audio_vae, sound_mel(shot, bank))


def write_shard(shard: Shard, encoder: ClipEncoder, digest: str | None = None) -> None:
    """Make what is missing of one shard.

    digest: of the speaker encoder; None where there is none.
    """
    drawn = []
    for number in range(shard.start, shard.stop):
        shot, rng = shard.bucket.draw(number, "train")
        drawn.append(speaking.give_voices(shot, encoder.bank, rng) if encoder.bank else shot)
    if not shard.is_done():
        tensors = {"audio": torch.stack([encoder.audio(shot) for shot in drawn]).half().contiguous()}
        if encoder.vae is not None:
            tensors["video"] = torch.stack([encoder.video(shot) for shot in drawn]).half().contiguous()
        store_shard(shard.path, tensors, drawn)
    if not shard.has_voices(digest):
        voices = {"speakers": torch.stack([encoder.speakers(shot) for shot in drawn])}
        common.write_atomically(shard.voices, lambda file: save_file(voices, file, {"encoder": str(digest)}))


def store_shard(path: Path, tensors: dict[str, torch.Tensor], drawn: Sequence[Shot]) -> None:
    """Write one shard for `read_shards`: the shots' JSON first, so that a shard that is there is complete."""
    text = json.dumps([asdict(shot) for shot in drawn], ensure_ascii=False)
    common.write_atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
    common.write_atomically(path, lambda file: save_file(tensors, file))


def read_shards(folder: Path) -> Iterator[tuple[dict[str, torch.Tensor], list[Shot]]]:
    """Every finished shard of `folder` in order: its tensors and its shots. Voices that are not there are zeros."""
    for path in sorted(folder.glob("shard_*.safetensors")):
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        voices = voices_path(path)
        silent = {"speakers": torch.zeros(len(stored), MOST_PEOPLE, SPEAKER_DIM)}
        tensors = {**load_file(path), **(load_file(voices) if voices.exists() else silent)}
        yield tensors, [shots.shot_from_dict(values) for values in stored]


def encoder_digest(model: Path, sound_only: bool = False) -> str:
    """Identifies what the latents come from: the encoders' weights and statistics, whatever the decoders are."""
    digest = hashlib.sha256()
    parts = ("audio_vae",) if sound_only else ("vae", "audio_vae")
    for path in sorted(path for part in parts for path in (model / part).glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            if name.startswith((*ENCODER_PREFIXES, "latents_")):
                digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    if not sound_only:
        config = json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))
        digest.update(json.dumps([config["latents_mean"], config["latents_std"]]).encode())
    return digest.hexdigest()


def speaker_digest(model: Path) -> str | None:
    """Identifies the speaker encoder; None where there is none."""
    files = sorted((model / "speaker_encoder").glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() if files else None


def read_cache(folder: Path) -> dict[str, Any]:
    """What a folder of latents says of itself: `encoders`, the digest of what made them, `shard`, clips a file, and
    `first`, the number of each bucket's first clip."""
    path = folder / CACHE_FILE
    if not path.exists():
        raise ValueError(f"{folder} holds no latents; run python -m training.cache_latents first")
    return {"first": 0, **json.loads(path.read_text(encoding="utf-8"))}


def check_folder(plan: CachePlan) -> None:
    """Refuse to mix latents of different encoders, shards of different sizes or other clips in one folder."""
    plan.out.mkdir(parents=True, exist_ok=True)
    path = plan.out / CACHE_FILE
    first = plan.buckets[0].first  # of a config's buckets all are alike
    wanted = {"encoders": encoder_digest(plan.model, plan.sound_only), "shard": plan.shard, "first": first}
    if path.exists() and (found := read_cache(plan.out)) != wanted:
        raise ValueError(f"{plan.out} was made with {found}, this run would use {wanted}; give another --out")
    common.write_atomically(path, lambda file: file.write_text(json.dumps(wanted), encoding="utf-8"))


_worker_state: dict[str, tuple[str | None, ClipEncoder]] = {}


def _start_worker(plan: CachePlan) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bank = VoiceBank.load(plan.voices) if plan.voices else None
    bank = bank.only(plan.names) if bank and plan.names else bank
    encoder = ClipEncoder(plan.model, bank, with_video=not plan.sound_only)
    _worker_state["state"] = speaker_digest(plan.model), encoder


def _make_shard(shard: Shard) -> str:
    digest, encoder = _worker_state["state"]
    write_shard(shard, encoder, digest)
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
    buckets = tuple(Bucket.from_config(name, clips, config.get("first", 0)) for name, clips in config["clips"].items())
    plan = CachePlan(
        arguments.out, arguments.model, arguments.voices, buckets, config["shard"], config.get("sound_only", False),
        tuple(config.get("voices", ())),
    )  # fmt: skip
    check_folder(plan)
    digest = speaker_digest(plan.model)
    todo = [shard for shard in plan.shards() if not (shard.is_done() and shard.has_voices(digest))]
    print(f"{len(todo)} of {len(plan.shards())} shards to make", flush=True)
    started = time.monotonic()
    with get_context("spawn").Pool(arguments.workers, _start_worker, (plan,)) as pool:
        for done, name in enumerate(pool.imap(_make_shard, todo), start=1):
            left = (time.monotonic() - started) / done * (len(todo) - done)
            print(f"{time.strftime('%H:%M:%S')} {name} written, {left / 60:.1f} minutes left", flush=True)


if __name__ == "__main__":
    main()
