"""Clips that a backbone makes anew from half of their noise, and the decoder's crops of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from nava_core.checkpoint import DEFAULT_MODEL
from training import cache_latents, imagined, video_vae
from training.common import load_config
from training.fast_vae import decode_pixels
from training.lexicon import WORDS
from training.voices import Voice, VoiceBank

CONFIG = Path(video_vae.__file__).parent / "configs/video_vae_stage2.yaml"


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
    imagined.make([plan.out], DEFAULT_MODEL, voices, out, clips=1, kinds=load_config(CONFIG)["imagined_kinds"])
    return plan.out, voices, out


def test_a_clip_made_anew_is_nearer_to_itself_than_its_noise(folders: tuple[Path, Path, Path]) -> None:
    cache, _, out = folders
    ((clean, stored),) = cache_latents.read_shards(cache)
    ((made, shots),) = cache_latents.read_shards(out)
    assert len(shots) == imagined.BATCH
    for latents, shot in zip(made["video"], shots, strict=True):
        before = clean["video"][stored.index(shot)].float()
        error = (latents.float() - before).square().mean().sqrt()
        assert 1e-3 < error < 0.2  # of latents whose spread is 1, noised to 0.2 or more
    assert made["video"].dtype == torch.float16


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


def test_the_decoder_alone_learns_from_them(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, voices, out = folders
    config = load_config(CONFIG)
    config |= {"pool": 1, "output": str(DEFAULT_MODEL / "vae"), "imagined_share": 1.0}
    trainer = video_vae.Trainer(config, tmp_path, "decoder", minutes=1e3, resume=False, imagined=(out, voices))
    before = {name: value.clone() for name, value in trainer.vae.state_dict().items()}
    values = trainer._train_step(0.5)
    assert 0 < values["imagined"] < 1 and "reconstruction" not in values
    changed = {name.split(".")[0] for name, value in trainer.vae.state_dict().items() if not value.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_what_cannot_be_imagined_is_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.imagined"):
        imagined.ImaginedSource(tmp_path, folders[1], seed=1)
    with pytest.raises(SystemExit):
        video_vae.main(["--imagined", str(folders[2])])
