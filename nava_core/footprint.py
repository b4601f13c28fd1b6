"""How many bytes of a device the 6.3B model takes under each profile, counted on the meta device.

`python -m nava_core.footprint` prints the table. Weights are those of the released sizes in bfloat16 (audio VAE,
vocoder and speaker encoder float32). Working memory is the largest sum of tensors alive at once in one pass through a
block of each kind, and in decoding, at 1280x704 and 37 latent frames: the tensors' own sizes, without what an
allocator, a library's workspace or attention's own scratch add.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import UMT5Config, UMT5EncoderModel

from nava_core.decode import FrameDecoder
from nava_core.models import attention_nava
from nava_core.models.attention_nava import NavaTextContext
from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.profiles import Profile, find_profile, read_profiles

VAE_CONFIG = Path(__file__).parent / "key_maps" / "wan22_vae_config.json"
UMT5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 256384,
    "feed_forward_proj": "gated-gelu",
}
LATENTS = (37, 44, 80)
"""Latent frames, height and width of 6 s at 1280x704."""
AUDIO_TOKENS = 152
PASSES = 4
TILE = 16
"""Latents along a side of the library's default tile (256 pixels)."""


def resident_bytes(profile: str | Profile) -> dict[str, int]:
    """Bytes of the weights that stay on the device, part by part, and of what comes to it for a while.

    Keys: transformer, text_encoder, vae, audio (VAE, vocoder and speaker encoder); text_layer: the largest that comes
    for a prompt, the token embedding; blocks: two that are there at once while blocks come and go.
    """
    profile = find_profile(profile) if isinstance(profile, str) else profile
    parts = _parts()
    blocks = [_bytes(block) for block in parts["transformer"].transformer_blocks]
    around = _bytes(parts["transformer"]) - sum(blocks)
    if profile.weights != "stored":
        blocks = [_eight_bits(block) for block in parts["transformer"].transformer_blocks]
    is_offloaded, is_streamed = profile.blocks == "offloaded", profile.text_encoder == "streamed"
    layers = [_bytes(layer) for layer in parts["text_encoder"].modules() if not list(layer.children())]
    return {
        "transformer": around + (0 if is_offloaded else sum(blocks)),
        "text_encoder": 0 if is_streamed else _bytes(parts["text_encoder"]),
        "vae": _bytes(parts["vae"]),
        "audio": sum(_bytes(parts[name]) for name in ("audio_vae", "vocoder", "speaker_encoder")),
        "text_layer": max(layers) if is_streamed else 0,
        "blocks": 2 * max(blocks) if is_offloaded else 0,
    }


def working_bytes(profile: str | Profile) -> dict[str, int]:
    """Bytes beside the weights at the worst moment. Keys: denoise, decode."""
    profile = find_profile(profile) if isinstance(profile, str) else profile
    passes = PASSES if profile.blocks == "offloaded" else 1
    height, width = (TILE, TILE) if profile.vae == "tiled" else LATENTS[1:]
    return {"denoise": _denoising(profile.ffn_chunk, passes), "decode": _decoding(height, width)}


def peaks(profile: str | Profile) -> dict[str, int]:
    """Bytes on the device between clips (resident) and at the worst moment of encoding, denoising and decoding.

    Encoding is the weights alone: 512 rows of text take next to nothing.
    """
    profile = find_profile(profile) if isinstance(profile, str) else profile
    weights, work = resident_bytes(profile), working_bytes(profile)
    resident = sum(weights[part] for part in ("transformer", "text_encoder", "vae", "audio"))
    leaves = weights["transformer"] if profile.decode == "alone" else 0
    return {
        "resident": resident,
        "encoding": resident + weights["text_layer"],
        "denoising": resident + weights["blocks"] + work["denoise"],
        "decoding": resident - leaves + work["decode"],
    }


def table() -> str:
    """The profiles as a Markdown table, GB (10^9 bytes)."""
    lines = ["| profile | resident | encoding | denoising | decoding | lossless |", "|---|---|---|---|---|---|"]
    for name, profile in read_profiles().items():
        cells = [f"{size / 1e9:.1f}" for size in peaks(profile).values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if profile.is_lossless else 'no'} |")
    return "\n".join(lines)


@cache
def _parts() -> dict[str, Any]:
    with torch.device("meta"):
        vae_config = json.loads(VAE_CONFIG.read_text(encoding="utf-8"))
        return {
            "transformer": NavaTransformer3DModel().to(torch.bfloat16),
            "text_encoder": UMT5EncoderModel(UMT5Config(**UMT5_XXL)).to(torch.bfloat16),
            "vae": AutoencoderKLWan.from_config(vae_config).to(torch.bfloat16),
            "audio_vae": AutoencoderKLLTX2Audio(),
            "vocoder": LTX2VocoderWithBWE(),
            "speaker_encoder": ReDimNetSpeakerEncoder(),
        }


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _eight_bits(block: nn.Module) -> int:
    """A block whose linear weights take a byte each."""
    matrices = [layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear)]
    return _bytes(block) - sum(matrices)


@cache
def _denoising(ffn_chunk: int | None, passes: int) -> int:
    """A pass through one block of each kind, while the tokens of the others wait."""
    model: Any
    with torch.device("meta"), _attention_without_scratch():
        model = NavaTransformer3DModel(num_layers=1, num_single_layers=1).to(torch.bfloat16).eval()
        model.enable_forward_chunking(ffn_chunk)
        video = torch.empty(1, 48, *LATENTS)
        audio = torch.empty(1, AUDIO_TOKENS, 128)
        rotary = torch.empty(
            tokens := model.token_count(video, audio), model.config.attention_head_dim // 2, dtype=torch.complex64
        )
        model.rope.forward = lambda *args: rotary
        context = NavaTextContext(torch.empty(1, 512, 3072, dtype=torch.bfloat16), keep=False)
        peak = _peak(lambda: model(video, audio, torch.empty(1), context))
        waiting = (passes - 1) * tokens * 3072 * 2  # the tokens of the other passes
    return peak + rotary.nbytes + waiting


@cache
def _decoding(height: int, width: int) -> int:
    """Three latent frames, after which the decoder's memory of the past is full."""
    vae = _parts()["vae"]
    with torch.device("meta"):

        def decode() -> None:
            decoder = FrameDecoder(vae)
            for _ in range(3):
                decoder(torch.empty(1, 48, 1, height, width, dtype=torch.bfloat16))

        return _peak(decode)


@contextmanager
def _attention_without_scratch() -> Iterator[None]:
    """On the meta device attention would make the whole matrix of weights, which no real kernel does."""
    original = attention_nava.dispatch_attention_fn
    attention_nava.dispatch_attention_fn = lambda query, *args, **kwargs: torch.empty_like(query)
    try:
        yield
    finally:
        attention_nava.dispatch_attention_fn = original


@torch.no_grad()
def _peak(work: Callable[[], Any]) -> int:
    with _LivingTensors() as living:
        work()
    return living.peak


class _LivingTensors(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = {tensor.untyped_storage()._cdata for tensor in leaves}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), given)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


if __name__ == "__main__":
    print(table())  # noqa: T201
