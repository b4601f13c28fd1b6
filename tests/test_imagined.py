"""Clips that a backbone makes anew from half of their noise, and the decoder's crops of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file

from nava_core.checkpoint import DEFAULT_MODEL
from training import cache_latents, imagined
from training.fast_vae import decode_pixels
from training.lexicon import WORDS
from training.video_vae import main as train_decoder
from training.voices import Voice, VoiceBank


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A cache of two falls, the voices of nobody who is in them, and what nava-nano makes of the cache."""
    folder = tmp_path_factory.mktemp("imagined")
    plan = cache_latents.CachePlan(
        folder / "cache", DEFAULT_MODEL, None, (cache_latents.Bucket("fall", "square", 2),), shard=2
    )
    cache_latents.check_folder(plan)
    cache_latents.write_shard(plan.shards()[0], cache_latents.ClipEncoder(DEFAULT_MODEL, None))
    voices = folder / "voices.npz"
    VoiceBank(
        [Voice("low-00", "low", "m", 100.0, 1.0, "train")], {"low-00": dict.fromkeys(WORDS, np.zeros(8000, np.float32))}
    ).save(voices)
    out = folder / "out"
    out.mkdir()
    imagined.make([plan.out], DEFAULT_MODEL, voices, out, clips=1)
    return plan.out, voices, out


def test_a_clip_made_anew_is_nearer_to_itself_than_its_noise(folders: tuple[Path, Path, Path]) -> None:
    cache, _, out = folders
    ((clean, stored),) = cache_latents.read_shards(cache)
    (made,) = out.glob("*.safetensors")
    entries = list(imagined._read(made))
    assert len(entries) == imagined.BATCH
    for latents, shot in entries:
        before = clean["video"][stored.index(shot)].float()
        error = (latents.float() - before).square().mean().sqrt()
        assert 1e-3 < error < 0.2  # of latents whose spread is 1, noised to 0.2 or more
    assert load_file(made)["video"].dtype == torch.float16


def test_crops_are_of_the_same_place_in_pixels_and_latents(folders: tuple[Path, Path, Path]) -> None:
    _, voices, out = folders
    source = imagined.ImaginedSource(out, voices, seed=1)
    vae = AutoencoderKLWan.from_pretrained(DEFAULT_MODEL / "vae", torch_dtype=torch.float32)
    mean, spread = (torch.tensor(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    errors, elsewhere = [], []
    for _ in range(4):
        pixels, mask, latents = source.draw()
        assert pixels.shape == (1, 3, 49, 64, 64) and mask.shape == (1, 1, 49, 64, 64)
        assert latents.shape == (1, 16, 13, 4, 4) and mask.max() > 0
        with torch.no_grad():
            sample = decode_pixels(vae, latents * spread + mean)
        errors.append((sample - pixels).abs().mean().item())
        elsewhere.append((sample - pixels.flip(-2)).abs().mean().item())
    assert np.mean(errors) < 0.05 and np.mean(errors) < 0.5 * np.mean(elsewhere)


def test_what_cannot_be_imagined_is_refused(folders: tuple[Path, Path, Path], tmp_path: Path, capsys: object) -> None:
    with pytest.raises(ValueError, match=r"training\.imagined"):
        imagined.ImaginedSource(tmp_path, folders[1], seed=1)
    with pytest.raises(SystemExit):
        train_decoder(["--imagined", str(folders[2])])
