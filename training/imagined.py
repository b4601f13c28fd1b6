"""Cached latents as a backbone leaves them, for the last stage of the video autoencoder's decoder.

    python -m training.imagined --latents runs/latents_stage2 runs/latents_stage4 --source assets/nava-nano \\
        --voices runs/voices/voices.npz --out runs/imagined --clips 1600

What a diffusion model makes is not what an encoder makes: forms are a little blurred, and not independently from
latent to latent, as the noise is that a decoder is made robust with. So clips of a cache are noised half-way, which
leaves them their layout, and denoised again by the backbone with their own captions and voices. A decoder that is
shown these and the clips' own pixels (`training.video_vae --imagined`) learns to draw what this backbone means. How
often which kind of shot is made stands in the decoder's config (`imagined_kinds`).

Each batch is a shard as `training.cache_latents` has them, of the `video` alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nava_core.models.transformer_nava import NavaTransformer3DModel
from training import common
from training.cache_latents import read_shards, store_shard
from training.clips import Batch, CachedClips
from training.speaking import openings
from training.video_windows import CELL, crop_corner, make_clip, to_pixels
from training.voices import VoiceBank

# Noise levels from which a clip is denoised again: below, a picture's layout is settled (docs/nano-stage2.md).
LEVELS = (0.2, 0.55)
STEPS = 8
BATCH = 16
CONFIG = Path("training/configs/video_vae_stage2.yaml")
CROP = 64  # pixels
SHAPE_SHARE = 0.85  # of the crops that hold a shape or a mouth


@torch.no_grad()
def imagine(transformer: NavaTransformer3DModel, states: Tensor, batch: Batch, level: float) -> Tensor:
    """The batch's video latents, noised to `level` in (0, 1) with their sound and denoised again in Euler's steps.

    states: (batch, text tokens, text_dim), zeros for padding.
    """
    if batch.video is None:
        raise ValueError("these latents are of sound alone; give a cache of clips with a picture")
    video, audio = (torch.lerp(clean, torch.randn_like(clean), level) for clean in (batch.video, batch.audio))
    levels = torch.linspace(level, 0, STEPS + 1)
    for now, then in pairwise(levels):
        with common.mixed_precision("auto"):
            velocity = transformer(
                video, audio, torch.full((len(audio),), 1000 * float(now)), states, batch.speakers,
                batch.speaker_positions, isolate_modalities=[False] * len(audio),
            )  # fmt: skip
        video = video + (then - now) * velocity.sample.float()
        audio = audio + (then - now) * velocity.audio_sample.float()
    return video


class ImaginedSource:
    """Crops of imagined clips for the decoder: whole in time, since a decoder's first frame has no past."""

    def __init__(self, folder: Path, voices: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.bank = VoiceBank.load(voices)
        self.clips = [
            entry for tensors, shots in read_shards(folder) for entry in zip(tensors["video"], shots, strict=True)
        ]
        if not self.clips:
            raise ValueError(f"{folder} holds no imagined latents; run python -m training.imagined first")

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels `(1, 3, frames, CROP, CROP)` in [-1, 1], the mask `(1, 1, frames, ...)`, and normalised latents."""
        latents, shot = self.clips[self.rng.integers(len(self.clips))]
        clip = make_clip(shot, openings(shot, self.bank))
        left, top = crop_corner(self.rng, clip.boxes, (CROP, CROP), shot.width, shot.height, SHAPE_SHARE)
        inside = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
        cells = tuple(slice(start // CELL, (start + CROP) // CELL) for start in (top, left))
        pixels, mask = (np.ascontiguousarray(values[inside]) for values in (clip.frames, clip.mask))
        return to_pixels(pixels)[None], torch.from_numpy(mask)[None, None], latents[None, :, :, *cells].float()


def make(latents: Sequence[Path], source: Path, voices: Path, out: Path, clips: int, kinds: dict[str, float]) -> None:
    """Write imagined batches of the caches `latents` until there are `clips` clips; each rank writes its own.

    kinds: the share of the batches that each kind of shot has, of those that the caches hold.
    """
    ranks = common.Ranks()
    torch.manual_seed(ranks.index)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source / "tokenizer")
    transformer = NavaTransformer3DModel.from_pretrained(source / "transformer", torch_dtype=torch.float32).eval()
    encoder = UMT5EncoderModel.from_pretrained(source / "text_encoder", dtype=torch.float32).eval()
    cached = CachedClips(latents, tokenizer, transformer.config.text_len, kinds, VoiceBank.load(voices))
    rng = np.random.default_rng(ranks.index)
    done, number = 0, ranks.index
    while done * ranks.count < clips:
        batch = cached.draw(rng, BATCH, empty_prompt=0.0)
        with torch.no_grad():
            states = encoder(batch.ids, attention_mask=batch.mask).last_hidden_state * batch.mask[..., None]
        video = imagine(transformer, states, batch, float(rng.uniform(*LEVELS)))
        store_shard(out / f"shard_{number:05d}.safetensors", {"video": video.half().contiguous()}, batch.shots)
        done, number = done + len(batch.shots), number + ranks.count
        print(f"{done * ranks.count} of {clips}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a backbone make cached clips anew from half of their noise.")
    parser.add_argument("--latents", type=Path, nargs="+", default=[Path("runs/latents_stage2")])
    parser.add_argument("--source", type=Path, default=Path("assets/nava-nano"), help="a model's folder")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="the latents' voices")
    parser.add_argument("--out", type=Path, default=Path("runs/imagined"))
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--config", type=Path, default=CONFIG, help="the decoder's, whose imagined_kinds are made")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = common.load_config(arguments.config)["imagined_kinds"]
    make(arguments.latents, arguments.source, arguments.voices, arguments.out, arguments.clips, kinds)


if __name__ == "__main__":
    main()
