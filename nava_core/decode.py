"""Between latents and what people see and hear: the library's autoencoders and vocoder, driven piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, unpatchify
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange

from nava_core.phase import refine_phases


def encode_video(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels to the normalised latents that the backbone works in: (posterior mode - mean) / std.

    Args:
        vae: the Wan2.2 video autoencoder.
        pixels: `(3, frames, height, width)` in [-1, 1]; 4n+1 frames, sides divisible by the autoencoder's factor (16).

    Returns:
        `(channels, latent_frames, latent_height, latent_width)` float32, on the autoencoder's device.

    Raises:
        ValueError: for any other shape.
    """
    stride, factor = vae.config["scale_factor_temporal"], vae.config["scale_factor_spatial"]
    if pixels.ndim != 4 or pixels.shape[0] != 3:
        raise ValueError(f"pixels have the shape {tuple(pixels.shape)}; pass (3, frames, height, width).")
    frames, height, width = pixels.shape[1:]
    if frames % stride != 1 % stride:
        raise ValueError(
            f"{frames} frames cannot be encoded; pass {stride}n+1 frames, e.g. {frames - (frames - 1) % stride}."
        )
    if height % factor or width % factor:
        raise ValueError(f"{width}x{height} pixels cannot be encoded; make both sides divisible by {factor}.")
    device, dtype = _onload(vae)
    with torch.no_grad():
        latents = vae.encode(pixels[None].to(device, dtype)).latent_dist.mode()[0].float()
        mean, std = _video_statistics(vae, device)
        return (latents - mean) / std


def decode_video(vae: AutoencoderKLWan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode a clip one latent frame at a time: exactly `vae.decode`, in memory that does not grow with the clip.

    `vae.decode` joins each new piece to all earlier ones, which takes time quadratic in the clip's length and memory
    for all of it. Here each piece is handed out instead. The feature cache belongs to the iterator, not to the
    autoencoder: several may run at once, and one that is dropped half-way leaves nothing behind. Tiling
    (`vae.enable_tiling()`) is followed.

    Args:
        vae: the Wan2.2 video autoencoder.
        latents: `(channels, latent_frames, latent_height, latent_width)`, normalised, of any dtype and device.

    Returns:
        An iterator over `(frames, height, width, 3)` in [0, 1], float32, on the autoencoder's device: the first frame
        alone, then 4 at a time.

    Raises:
        ValueError: for any other shape, at once and not at the first frame.
    """
    if latents.ndim != 4 or latents.shape[0] != vae.config["z_dim"] or latents.shape[1] == 0:
        raise ValueError(
            f"video latents have the shape {tuple(latents.shape)}; "
            f"pass ({vae.config['z_dim']}, latent_frames, latent_height, latent_width)."
        )
    return _decoded_frames(vae, latents)


def decode_clip(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`decode_video` into one tensor `(frames, height, width, 3)`, in which each piece is put as it comes."""
    clip: torch.Tensor | None = None
    filled = 0
    for piece in decode_video(vae, latents):
        if clip is None:
            clip = piece.new_empty(clip_length(vae, latents), *piece.shape[1:])
        clip[filled : filled + len(piece)] = piece
        filled += len(piece)
    assert clip is not None and filled == len(clip)
    return clip


def clip_length(vae: AutoencoderKLWan, latents: torch.Tensor) -> int:
    """How many frames `latents` `(channels, latent_frames, latent_height, latent_width)` decode to."""
    return (latents.shape[1] - 1) * vae.config["scale_factor_temporal"] + 1


def encode_audio(audio_vae: AutoencoderKLLTX2Audio, mel: torch.Tensor) -> torch.Tensor:
    """Log-mel to normalised audio tokens.

    Args:
        audio_vae: the LTX-2 audio autoencoder.
        mel: `(channels, frames, mel_bins)` as `nava_core.mel.log_mel_spectrogram` returns it.

    Returns:
        `(tokens, latent_channels * latent_bins)` float32, one token per 4 frames (rounded up); channel-major inside.
    """
    if mel.ndim != 3:
        raise ValueError(f"the mel spectrogram has the shape {tuple(mel.shape)}; pass (channels, frames, mel_bins).")
    device, dtype = _onload(audio_vae)
    with torch.no_grad():
        latents = audio_vae.encode(mel[None].to(device, dtype)).latent_dist.mode()[0].float()
        tokens = rearrange(latents, "channels tokens bins -> tokens (channels bins)")
        mean, std = _audio_statistics(audio_vae, tokens)
        return (tokens - mean) / std


def decode_mel(audio_vae: AutoencoderKLLTX2Audio, tokens: torch.Tensor) -> torch.Tensor:
    """Normalised audio tokens to log-mel.

    Args:
        audio_vae: the LTX-2 audio autoencoder.
        tokens: `(tokens, latent_channels * latent_bins)`, normalised.

    Returns:
        `(channels, 4 * tokens - 3, mel_bins)` float32.
    """
    if tokens.ndim != 2 or len(tokens) == 0:
        raise ValueError(f"audio tokens have the shape {tuple(tokens.shape)}; pass (tokens, channels).")
    device, dtype = _onload(audio_vae)
    with torch.no_grad():
        tokens = tokens.to(device, torch.float32)
        mean, std = _audio_statistics(audio_vae, tokens)
        latents = rearrange(
            tokens * std + mean,
            "tokens (channels bins) -> channels tokens bins",
            channels=audio_vae.config["latent_channels"],
        )
        return audio_vae.decode(latents[None].to(dtype)).sample[0].float()


def decode_audio(
    audio_vae: AutoencoderKLLTX2Audio, vocoder: LTX2VocoderWithBWE, tokens: torch.Tensor, phase_rounds: int = 0
) -> torch.Tensor:
    """Normalised audio tokens to sound. phase_rounds: see `refine_phases`.

    Returns:
        `(channels, samples)` float32 in [-1, 1] at the vocoder's rate: `(4 * tokens - 3) * 480` samples at 48 kHz for
        the LTX-2.3 vocoder. Untrimmed; muxing fits it to the picture's length.
    """
    mel = decode_mel(audio_vae, tokens)
    device, dtype = _onload(vocoder)
    with torch.no_grad():
        sound = vocoder(mel[None].to(device, dtype))[0].float()
        return refine_phases(sound, mel, sampling_rate(vocoder), phase_rounds)


def sampling_rate(vocoder: LTX2VocoderWithBWE) -> int:
    """Samples per second of what `decode_audio` returns."""
    return int(vocoder.config["output_sampling_rate"])


@apply_forward_hook
def _onload(model: ModelMixin) -> tuple[torch.device, torch.dtype]:
    """Where `model` runs and in what; the decorator has brought a model under model offload to its device by then."""
    return model.device, model.dtype


def _video_statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device)[:, None, None, None]
        for values in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return mean, std


def _audio_statistics(audio_vae: AutoencoderKLLTX2Audio, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    expected = audio_vae.latents_mean.numel()
    if tokens.shape[-1] != expected:
        raise ValueError(
            f"audio tokens have {tokens.shape[-1]} channels and the audio autoencoder's statistics {expected}; "
            "pass tokens made by, or for, this autoencoder."
        )
    return audio_vae.latents_mean.to(tokens), audio_vae.latents_std.to(tokens)


@torch.no_grad()
def _decoded_frames(vae: AutoencoderKLWan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    latents = denormalised(vae, latents)
    for piece in _decoded_tiled(vae, latents) if needs_tiles(vae, latents) else _decoded_whole(vae, latents):
        yield as_frames(vae, piece)


def denormalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Normalised `(channels, frames, height, width)` -> `(1, channels, ...)` as the decoder wants it."""
    device, dtype = _onload(vae)
    mean, std = _video_statistics(vae, device)
    return (latents.to(device, torch.float32) * std + mean).to(dtype)[None]


def as_frames(vae: AutoencoderKLWan, piece: torch.Tensor) -> torch.Tensor:
    """What the decoder returns for a latent frame -> `(frames, height, width, 3)` in [0, 1], float32."""
    if vae.config["patch_size"] is not None:
        piece = unpatchify(piece, patch_size=vae.config["patch_size"])
    piece = piece.clamp(-1.0, 1.0)[0].float() * 0.5 + 0.5
    return rearrange(piece, "rgb frames height width -> frames height width rgb").contiguous()


class FrameDecoder:
    """The library's decoder with a feature cache of its own; takes one latent frame per call, in order."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.decoder = vae.decoder
        self.cache: list[torch.Tensor | str | None] = [None] * sum(
            isinstance(module, WanCausalConv3d) for module in vae.decoder.modules()
        )
        self.is_first = True

    def __call__(self, latent_frame: torch.Tensor) -> torch.Tensor:
        piece = self.decoder(latent_frame, feat_cache=self.cache, feat_idx=[0], first_chunk=self.is_first)
        self.is_first = False
        return piece

    def park(self) -> None:
        """Move the cache to the host; the decoder's layers bring back what they use."""
        self.cache = [entry.cpu() if isinstance(entry, torch.Tensor) else entry for entry in self.cache]


def _decoded_whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    decoder = FrameDecoder(vae)
    # The whole clip in one call, as the library does it: piece by piece may differ in the last bit.
    latents = vae.post_quant_conv(latents)
    for index in range(latents.shape[2]):
        yield decoder(latents[:, :, index : index + 1])


def needs_tiles(vae: AutoencoderKLWan, latents: torch.Tensor) -> bool:
    """Whether `vae` has tiling on and `latents` (..., latent_height, latent_width) are larger than a tile."""
    height, width = latents.shape[-2:]
    factor = vae.config["scale_factor_spatial"]
    return vae.use_tiling and (
        height > vae.tile_sample_min_height // factor or width > vae.tile_sample_min_width // factor
    )


def _decoded_tiled(vae: AutoencoderKLWan, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """`AutoencoderKLWan.tiled_decode` with its loops turned inside out: frame by frame, each frame over all tiles.

    That needs a feature cache per tile; all but the current one wait in host memory, so the device holds one at a time.
    """
    factor, patch = vae.config["scale_factor_spatial"], vae.config["patch_size"] or 1
    height, width = (side * factor // patch for side in latents.shape[-2:])
    stride_y, stride_x = vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch
    blend_y = vae.tile_sample_min_height // patch - stride_y
    blend_x = vae.tile_sample_min_width // patch - stride_x
    latent_size_y, latent_size_x = vae.tile_sample_min_height // factor, vae.tile_sample_min_width // factor
    tops = range(0, latents.shape[-2], vae.tile_sample_stride_height // factor)
    lefts = range(0, latents.shape[-1], vae.tile_sample_stride_width // factor)
    decoders = {(y, x): FrameDecoder(vae) for y in tops for x in lefts}

    for index in range(latents.shape[2]):
        above: list[torch.Tensor] = []
        rows = []
        for y in tops:
            tiles: list[torch.Tensor] = []
            for column, x in enumerate(lefts):
                tile = latents[:, :, index : index + 1, y : y + latent_size_y, x : x + latent_size_x]
                tile = decoders[y, x](vae.post_quant_conv(tile))
                decoders[y, x].park()
                if above:
                    tile = vae.blend_v(above[column], tile, blend_y)
                if tiles:
                    tile = vae.blend_h(tiles[-1], tile, blend_x)
                tiles.append(tile)
            rows.append(torch.cat([tile[..., :stride_y, :stride_x] for tile in tiles], dim=-1))
            above = tiles
        yield torch.cat(rows, dim=-2)[..., :height, :width]
