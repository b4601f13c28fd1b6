"""Render clips of the nano world and store what the backbone trains on: normalised latents, tokens and scenes.

    python -m training.cache_latents --out runs/latents --clips 4000 --workers 2

Clip number i is the scene drawn with seed i, so a run can be stopped, resumed and made longer. A shard is a
`.safetensors` file with `video` (clips, channels, latent frames, height, width) and `audio` (clips, tokens, channels),
both float16, and beside it a `.json` list of the scenes, from which captions are drawn at training time. The first
latent frame of `video` is also the encoding of the first frame alone: the autoencoder is causal.
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
from training import common, world
from training.video_vae import encode_moments, to_pixels, use_fast_norms

SOUND_RATE, MEL_RATE = 48_000, 16_000
ENCODER_PREFIXES = ("encoder.", "quant_conv.")


@dataclass(frozen=True)
class CachePlan:
    """What a worker needs to make any shard."""

    out: Path
    model: Path
    clips: int
    shard: int

    @property
    def shards(self) -> int:
        return -(-self.clips // self.shard)

    def path(self, index: int) -> Path:
        return self.out / f"shard_{index:05d}.safetensors"

    def clip_range(self, index: int) -> range:
        return range(index * self.shard, min((index + 1) * self.shard, self.clips))

    def is_done(self, index: int) -> bool:
        """Whether the shard is there with all of its clips (a run made longer may have to redo its last one)."""
        path = self.path(index)
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            return file.get_slice("video").get_shape()[0] == len(self.clip_range(index))


class ClipEncoder:
    """Scenes to normalised video latents and audio tokens."""

    def __init__(self, model: Path) -> None:
        self.vae = use_fast_norms(AutoencoderKLWan.from_pretrained(model / "vae", torch_dtype=torch.float32)).eval()
        self.audio_vae = AutoencoderKLLTX2Audio.from_pretrained(model / "audio_vae", torch_dtype=torch.float32).eval()
        mean, std = self.vae.config["latents_mean"], self.vae.config["latents_std"]
        self.mean, self.std = (torch.tensor(values)[:, None, None, None] for values in (mean, std))

    @torch.no_grad()
    def video(self, scene: world.Scene) -> torch.Tensor:
        """`(channels, latent_frames, height, width)`: `nava_core.decode.encode_video` in two chunks."""
        pixels = to_pixels(world.render_frames(scene))
        moments = encode_moments(self.vae, pixels[None])[0]
        return (moments[: len(self.mean)] - self.mean) / self.std

    @torch.no_grad()
    def audio(self, scene: world.Scene) -> torch.Tensor:
        """`(tokens, channels)`."""
        sound = world.render_sound(scene, rate=SOUND_RATE)
        waveform = soxr.resample(np.ascontiguousarray(sound.T), SOUND_RATE, MEL_RATE).T
        return encode_audio(self.audio_vae, log_mel_spectrogram(torch.from_numpy(np.ascontiguousarray(waveform))))


def write_shard(plan: CachePlan, index: int, encoder: ClipEncoder) -> None:
    """Make one shard: the scenes' JSON first, so that a shard that is there is complete."""
    scenes = [world.sample_scene(np.random.default_rng(seed), "train") for seed in plan.clip_range(index)]
    tensors = {
        "video": torch.stack([encoder.video(scene) for scene in scenes]).half().contiguous(),
        "audio": torch.stack([encoder.audio(scene) for scene in scenes]).half().contiguous(),
    }
    text = json.dumps([asdict(scene) for scene in scenes], ensure_ascii=False)
    path = plan.path(index)
    common.write_atomically(path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
    common.write_atomically(path, lambda file: save_file(tensors, file))


def read_shards(folder: Path) -> Iterator[tuple[dict[str, torch.Tensor], list[world.Scene]]]:
    """Every finished shard of `folder` in order: its tensors and its scenes."""
    for path in sorted(folder.glob("shard_*.safetensors")):
        scenes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        yield load_file(path), [world.Scene(**scene) for scene in scenes]


def encoder_digest(model: Path) -> str:
    """Identifies what the latents come from: both encoders' weights and statistics, whatever the decoders are."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("vae", "audio_vae") for p in (model / part).glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            if name.startswith(ENCODER_PREFIXES) or name.startswith("latents_"):
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
    _worker_state["state"] = plan, ClipEncoder(plan.model)


def _make_shard(index: int) -> int:
    plan, encoder = _worker_state["state"]
    write_shard(plan, index, encoder)
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description="Store latents of world clips for the backbone's training.")
    parser.add_argument("--out", type=Path, default=Path("runs/latents"))
    parser.add_argument("--model", type=Path, default=Path("assets/nava-nano"), help="holds vae/ and audio_vae/")
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--shard", type=int, default=50, help="clips per file")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    plan = CachePlan(arguments.out, arguments.model, arguments.clips, arguments.shard)
    check_folder(plan)
    todo = [index for index in range(plan.shards) if not plan.is_done(index)]
    print(f"{len(todo)} of {plan.shards} shards to make", flush=True)
    started = time.monotonic()
    with get_context("spawn").Pool(arguments.workers, _start_worker, (plan,)) as pool:
        for done, index in enumerate(pool.imap_unordered(_make_shard, todo), start=1):
            left = (time.monotonic() - started) / done * (len(todo) - done)
            print(f"{time.strftime('%H:%M:%S')} shard {index} written, {left / 60:.1f} minutes left", flush=True)


if __name__ == "__main__":
    main()
