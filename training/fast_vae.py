"""The library's small video autoencoder in fewer calls: the same numbers in a fraction of the time on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanRMS_norm, patchify, unpatchify
from torch import nn

from training.video_windows import to_pixels


class ChannelRMSNorm(nn.Module):
    """`WanRMS_norm` with a sum of squares in place of `F.normalize`, whose norm over channels is slow on a CPU."""

    def __init__(self, norm: WanRMS_norm) -> None:
        super().__init__()
        self.scale = norm.scale
        self.gamma = norm.gamma

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inverse = torch.rsqrt(hidden_states.square().sum(1, keepdim=True) + 1e-24) * self.scale
        return hidden_states * inverse * self.gamma


def use_fast_norms(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Replace the norms in place; parameters, their names and the results stay the same (float32 only)."""
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, WanRMS_norm):
                setattr(module, name, ChannelRMSNorm(child))
    return vae


def encode_moments(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """`vae.encode(pixels).latent_dist.parameters` in two chunks: the first frame, then all others.

    The library walks in chunks of four frames through the same cache; the convolutions are causal, so larger chunks
    give the same numbers in a fraction of the calls.

    Args:
        pixels: `(batch, 3, 4n+1, height, width)` in [-1, 1].

    Returns:
        Mean and log-variance, `(batch, 2 * z_dim, n+1, height / 16, width / 16)`.
    """
    vae.clear_cache()
    patches = patchify(pixels, vae.config["patch_size"])
    cache = vae._enc_feat_map
    chunks = [vae.encoder(patches[:, :, :1], feat_cache=cache, feat_idx=[0])]
    if patches.shape[2] > 1:
        chunks.append(vae.encoder(patches[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(chunks, dim=2))


def decode_pixels(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode(latents).sample` before its clamp to [-1, 1], in two chunks as in `encode_moments`."""
    vae.clear_cache()
    hidden_states = vae.post_quant_conv(latents)
    cache = vae._feat_map
    chunks = [vae.decoder(hidden_states[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
    if hidden_states.shape[2] > 1:
        chunks.append(vae.decoder(hidden_states[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, dim=2), vae.config["patch_size"])


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, frames: np.ndarray) -> np.ndarray:
    """uint8 frames through encoder and decoder."""
    latents = encode_moments(vae, to_pixels(frames)[None]).chunk(2, dim=1)[0]
    sample = decode_pixels(vae, latents).clamp(-1, 1)
    return sample[0].add(1).mul(127.5).round().byte().permute(1, 2, 3, 0).numpy()
