"""Row 8: the picture decoded as a stream, whose memory must not grow with the clip."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

import nava_core
from benchmarks.catalogue import row
from benchmarks.harness import Row, processor_seconds
from benchmarks.memory import peak_tensor_bytes
from nava_core.decode import decode_video

LONG, SHORT = 37, 5  # latent frames
SIDE = 4  # latent height and width: 64x64 pixels
CONFIG = Path(nava_core.__file__).parent / "key_maps" / "wan22_vae_config.json"


@torch.no_grad()
def decoding_part(budget: float) -> list[Row]:
    """Peak memory at 37 latent frames / at 5, with frames equal to the library's."""
    vae = make_vae()
    clips = {frames: _latents(vae, frames) for frames in (LONG, SHORT)}
    for _ in decode_video(vae, clips[SHORT][:, :2]):
        pass
    peaks = {frames: peak_tensor_bytes(partial(_stream, vae, latents)) for frames, latents in clips.items()}
    outputs: dict[str, torch.Tensor] = {}
    library = processor_seconds(lambda: outputs.update(library=library_decode(vae, clips[LONG])))
    ours = processor_seconds(lambda: outputs.update(ours=torch.cat(list(decode_video(vae, clips[LONG])))))
    exact = torch.equal(outputs["ours"], outputs["library"])
    detail = {
        "summary": f"{peaks[LONG] / 2**20:.1f} MiB against {peaks[SHORT] / 2**20:.1f} MiB; the long clip in "
        f"{ours:.1f} s, by the library's decode in {library:.1f} s; frames "
        f"{'equal bit for bit' if exact else 'DIFFER'} (Wan2.2's decoder, a tenth as wide, 64x64 pixels, float32)",
        "peak_bytes": {str(frames): peak for frames, peak in peaks.items()},
        "library_seconds": library,
        "our_seconds": ours,
        "exact": exact,
    }
    return [row("vae", peaks[LONG] / peaks[SHORT], detail, holds=exact)]


def make_vae() -> AutoencoderKLWan:
    """Wan2.2's autoencoder, narrow, with random weights."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    vae = AutoencoderKLWan.from_config(config | {"base_dim": 16, "decoder_base_dim": 24})
    return vae.requires_grad_(False).eval()


def _latents(vae: AutoencoderKLWan, frames: int) -> torch.Tensor:
    shape = (vae.config["z_dim"], frames, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


def _stream(vae: AutoencoderKLWan, latents: torch.Tensor) -> None:
    """As an encoder takes frames: each piece is used and forgotten."""
    for piece in decode_video(vae, latents):
        piece.sum()


def library_decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The same frames by `vae.decode`, (frames, height, width, 3) in [0, 1]."""
    mean, std = (torch.tensor(vae.config[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std"))
    pixels = vae.decode((latents * std + mean)[None], return_dict=False)[0][0]
    return (pixels * 0.5 + 0.5).permute(1, 2, 3, 0)
