"""The trainers' shared helpers, the video autoencoder's shortcuts against the library, and the latent cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio
from torch import nn

from nava_core.decode import encode_video
from training import cache_latents, common, fast_vae, shots, video_vae, video_windows, world
from training.muon import Muon

TINY = {
    "base_dim": 4,
    "decoder_base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
}
LOSS = {"shape_weight": 4.0, "gradient": 1.0, "coarse": 0.5, "sharp_from": 0.4, "kl": 1e-4}
LOSS |= {"latent_noise": 0.1, "noisy_from": 1.0}
CONFIG = {
    "model": TINY,
    "weights": None,
    "kinds": {"fall": 0.5, "pair": 0.5},
    "seed": 0,
    "precision": "auto",
    "learning_rate": 1e-3,
    "decay_share": 0.25,
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "checkpoint_seconds": 1e9,
    "windows": [{"frames": 5, "height": 32, "width": 32, "batch": 1, "share": [1.0, 1.0]}],
    "moving_share": 0.5,
    "shape_share": 0.9,
    "pool": 2,
    "loss": LOSS,
}


@pytest.fixture
def tiny() -> video_vae.AutoencoderKLWan:
    torch.manual_seed(0)
    return video_vae.build(TINY).eval()


def test_checkpoint_round_trip_leaves_no_temporary_file(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    common.save_checkpoint(tmp_path, 7, module=module, note="a", spent=1.5)
    state = common.load_checkpoint(tmp_path)
    assert state is not None
    assert (state["step"], state["note"], state["spent"]) == (7, "a", 1.5)
    torch.testing.assert_close(state["module"]["weight"], module.weight.detach())
    assert [path.name for path in tmp_path.iterdir()] == [common.CHECKPOINT_NAME]


def test_a_failed_write_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    common.save_checkpoint(tmp_path, 1)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        common.write_atomically(tmp_path / common.CHECKPOINT_NAME, fail)
    state = common.load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert common.load_checkpoint(tmp_path) is None


def test_ema_follows_and_refuses_another_model() -> None:
    module = nn.Linear(2, 2)
    ema = common.EMA(module, decay=0.5)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    for _ in range(20):
        ema.update(module)
    target = nn.Linear(2, 2)
    ema.copy_to(target)
    torch.testing.assert_close(target.weight, start + 1, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="differ"):
        common.EMA(nn.Conv1d(1, 1, 1, bias=False)).load_state_dict(ema.state_dict())


def test_schedule_rises_then_falls_to_its_floor() -> None:
    values = [common.warmup_cosine(p, warmup=0.1, final=0.05) for p in np.linspace(0, 1, 51)]
    assert values[0] < 0.01
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.05)
    assert np.all(np.diff(values[5:]) <= 1e-9)


def test_held_schedule_falls_to_zero() -> None:
    values = [common.warmup_hold_decay(p, warmup=0.1, decay=0.5) for p in (0.05, 0.2, 0.5, 0.75, 1.0)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_muon_learns_a_convolution() -> None:
    torch.manual_seed(0)
    target, module = nn.Conv3d(2, 8, 3, bias=False), nn.Conv3d(2, 8, 3, bias=False)
    images = torch.randn(4, 2, 5, 5, 5)
    optimizer = Muon(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (module(images) - target(images).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_window_shares_are_interpolated() -> None:
    window = video_windows.Window(frames=1, height=16, width=16, batch=1, share=[1.0, 0.5, 0.0])
    assert [window.share_at(p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


def test_clock_ends_at_whichever_comes_first() -> None:
    assert common.RunClock(steps=10).progress(5) == pytest.approx(0.5)
    assert common.RunClock(steps=10, minutes=1, spent=60).progress(1) == 1.0
    with pytest.raises(ValueError, match="needs an end"):
        common.RunClock()


def test_precision() -> None:
    with common.mixed_precision("bfloat16"):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16
    with common.mixed_precision("float32"):
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
    with pytest.raises(ValueError, match="precision is 'half'; it must be auto"), common.mixed_precision("half"):
        pass


def test_attention_keeps_float32_where_all_else_is_bfloat16() -> None:
    query = torch.ones(1, 1, 3, 8, dtype=torch.bfloat16)
    with common.mixed_precision("bfloat16"):
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, value=query.float())
        assert attended.dtype == torch.float32
        assert (attended @ torch.ones(8, 1)).dtype == torch.bfloat16


def test_metrics_log_reads_back(tmp_path: Path) -> None:
    log = common.MetricsLog(tmp_path / "runs" / "metrics.jsonl")
    log.write(1, loss=0.5)
    log.write(2, loss=0.25, note="落下")
    assert [(row["step"], row["loss"]) for row in log.read()] == [(1, 0.5), (2, 0.25)]


def test_config_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="mapping"):
        common.load_config(path)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_two_chunks_and_fast_norms_equal_the_library(tiny: video_vae.AutoencoderKLWan, frames: int) -> None:
    pixels = torch.rand(1, 3, frames, 32, 48) * 2 - 1
    moments = tiny.encode(pixels).latent_dist.parameters
    latents = moments[:, : TINY["z_dim"]]
    decoded = tiny.decode(latents).sample
    fast_vae.use_fast_norms(tiny)
    torch.testing.assert_close(fast_vae.encode_moments(tiny, pixels), moments, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(fast_vae.decode_pixels(tiny, latents).clamp(-1, 1), decoded, atol=2e-5, rtol=1e-4)


def test_fast_norms_keep_the_names_of_the_weights(tiny: video_vae.AutoencoderKLWan) -> None:
    names = list(tiny.state_dict())
    assert list(fast_vae.use_fast_norms(tiny).state_dict()) == names


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_gradients_reach_what_is_trained(tiny: video_vae.AutoencoderKLWan, freeze_encoder: bool) -> None:
    pixels, mask = torch.rand(1, 3, 5, 32, 32) * 2 - 1, torch.ones(1, 1, 5, 32, 32)
    loss, values = video_vae.training_loss(tiny, pixels, mask, LOSS, freeze_encoder)
    loss.backward()
    assert np.isfinite(list(values.values())).all()
    assert all(value.grad is not None for value in tiny.decoder.parameters())
    assert all((value.grad is None) == freeze_encoder for value in tiny.encoder.parameters())


@pytest.mark.parametrize("kind", ["fall", "talk", "pair", "tour"])
def test_the_mask_holds_what_changes(kind: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        clip, openings = video_windows.babbling(shots.sample_shot(rng, kind, "all"), rng)
        weight = video_windows.SHAPE_WEIGHT if kind == "fall" else 1
        assert clip.mask.shape == clip.frames.shape[:3] and clip.mask.max() == weight
        assert clip.moving.max() < len(clip.frames) - 1
        if kind == "fall":
            change = np.abs(np.diff(clip.frames.astype(np.int16), axis=0)).max(-1) > 60
            assert change[clip.mask[1:] == weight].sum() > 0.9 * change.sum() > 0
        assert len(openings) == {"fall": 0, "talk": 1, "pair": 2}.get(kind, len(openings))


def test_windows_have_their_size_and_mostly_the_shape() -> None:
    source = video_windows.WindowSource({**CONFIG, "pool": 4}, seed=1)
    sizes = np.random.default_rng(2)
    masks = []
    for _ in range(12):
        pixels, mask = source.draw(0.5, sizes)
        assert pixels.shape == (1, 3, 5, 32, 32) and mask.shape == (1, 1, 5, 32, 32)
        assert pixels.min() >= -1 and pixels.max() <= 1
        masks.append(mask.max().item())
    assert np.mean(masks) > 0.5


def test_hard_shapes_come_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[shots.Shot] = []
    make = video_windows.babbling
    monkeypatch.setattr(video_windows, "babbling", lambda shot, rng: (drawn.append(shot), make(shot, rng))[1])
    falls = {**CONFIG, "kinds": {"fall": 1.0}, "pool": 12}
    video_windows.WindowSource({**falls, "hard_share": 1.0, "tinted": 1.0}, seed=1)
    assert all(video_windows.is_hard(shot) and shot.scene and shot.scene.tint for shot in drawn)
    drawn.clear()
    video_windows.WindowSource(falls, seed=1)
    assert not all(map(video_windows.is_hard, drawn)) and not any(shot.scene and shot.scene.tint for shot in drawn)


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    trainer = video_vae.Trainer(CONFIG, tmp_path, "joint", minutes=1e3, resume=False)
    trainer._train_step(0.5)
    trainer.step = 1
    trainer.save()
    again = video_vae.Trainer(CONFIG, tmp_path, "joint", minutes=1e3, resume=True)
    assert again.step == 1
    for name, value in trainer.vae.state_dict().items():
        torch.testing.assert_close(again.vae.state_dict()[name], value)
    decoder = video_vae.Trainer(CONFIG, tmp_path, "decoder", minutes=1e3, resume=False)
    assert decoder.step == 0
    before = {name: value.clone() for name, value in decoder.vae.state_dict().items()}
    decoder._train_step(0.5)
    changed = {name.split(".")[0] for name, value in decoder.vae.state_dict().items() if not value.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_the_decoder_stage_needs_weights_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        video_vae.Trainer(CONFIG, tmp_path, "decoder", minutes=1, resume=False)


@pytest.fixture
def tiny_models(tmp_path: Path, tiny: video_vae.AutoencoderKLWan) -> Path:
    folder = tmp_path / "model"
    video_vae.export(tiny, TINY, [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 1.5], folder / "vae")
    audio = AutoencoderKLLTX2Audio(
        base_channels=32, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, norm_type="pixel", mel_bins=64
    )
    audio.save_pretrained(folder / "audio_vae")
    return folder


def cache_plan(folder: Path, model: Path, clips: int, shard: int) -> cache_latents.CachePlan:
    return cache_latents.CachePlan(folder, model, None, (cache_latents.Bucket("fall", "square", clips),), shard)


def test_cache_holds_normalised_latents_and_the_shots(tiny_models: Path, tmp_path: Path) -> None:
    plan = cache_plan(tmp_path / "cache", tiny_models, clips=1, shard=2)
    cache_latents.check_folder(plan)
    (shard,) = plan.shards()
    assert not shard.is_done()
    cache_latents.write_shard(shard, cache_latents.ClipEncoder(tiny_models, None, precision="float32"))
    assert shard.is_done()
    ((tensors, stored),) = cache_latents.read_shards(plan.out)
    assert stored == [plan.buckets[0].draw(0, "train")[0]]
    assert tensors["audio"].shape[:2] == (1, 52) and not tensors["speakers"].any()
    pixels = video_windows.to_pixels(shots.render_frames(stored[0]))
    vae = video_vae.AutoencoderKLWan.from_pretrained(tiny_models / "vae", torch_dtype=torch.float32)
    whole = encode_video(vae, pixels)
    torch.testing.assert_close(tensors["video"][0].float(), whole, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(encode_video(vae, pixels[:, :1]), whole[:, :1])
    usual = cache_latents.ClipEncoder(tiny_models, None).video(stored[0])  # in bfloat16 where the CPU has it
    assert (usual - whole).square().mean().sqrt() < 0.03 * whole.std()
    assert not cache_plan(plan.out, tiny_models, clips=2, shard=2).shards()[0].is_done()


def test_what_rings_on_at_the_end_of_a_clip_does_not_sound_like_an_impact() -> None:
    shots_of = (shots.sample_shot(np.random.default_rng(seed), "fall") for seed in range(200))
    late = [shot for shot in shots_of if shot.scene and world.contacts(shot.scene)[-1].time > world.CLIP_SECONDS - 0.25]
    assert len(late) > 5
    for shot in late:
        mel = cache_latents.sound_mel(shot, None)
        assert mel.shape == (2, 205, 64)
        levels = mel.mean(dim=(0, 2))
        assert levels[-2:].max() < levels[-9:-5].mean() + 0.05


def test_shards_of_all_buckets_come_by_turns(tmp_path: Path) -> None:
    buckets = (cache_latents.Bucket("fall", "square", 7), cache_latents.Bucket("talk", "square", 4))
    shards = cache_latents.CachePlan(tmp_path, tmp_path, None, buckets, shard=2).shards()
    assert [shard.bucket.kind for shard in shards[:3]] == ["fall", "talk", "fall"]
    assert sum(shard.stop - shard.start for shard in shards) == 11
    assert len({shard.path for shard in shards}) == len(shards) == 6


def test_a_bucket_of_another_length_draws_other_clips_and_has_files_of_its_own(tmp_path: Path) -> None:
    short, long = (cache_latents.Bucket.from_config(name, 1) for name in ("tour/portrait", "tour/portrait/3"))
    shot, longer = (bucket.draw(0, "train")[0] for bucket in (short, long))
    assert (shot.seconds, longer.seconds, longer.num_frames) == (2.0, 3.0, 73)
    assert (shot.width, longer.width) == (128, 128) and shot.seed != longer.seed
    paths = [shard.path.name for shard in cache_latents.CachePlan(tmp_path, tmp_path, None, (short, long), 2).shards()]
    assert paths == ["shard_tour_portrait_00000.safetensors", "shard_tour_portrait_3_00000.safetensors"]


def test_faint_buckets_hold_stars_in_the_colours_around_blue() -> None:
    for kind in ("fall", "roll"):
        bucket = cache_latents.Bucket.from_config(f"{kind}/square/faint", 8, 80_000)
        drawn = [bucket.draw(number, "train")[0] for number in range(8)]
        for shot in drawn:
            body = shot.scene or shot.roll
            assert body is not None and body.shape == "star" and body.colour in world.FAINT
        assert len({shot.seed for shot in drawn}) == 8 and bucket.name == (kind, "square", "faint")


def test_cache_refuses_latents_of_another_encoder(tiny_models: Path, tmp_path: Path) -> None:
    plan = cache_plan(tmp_path / "cache", tiny_models, clips=1, shard=1)
    cache_latents.check_folder(plan)
    config = tiny_models / "vae" / "config.json"
    changed = {**json.loads(config.read_text()), "latents_std": [9.0] * 4}
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="another --out"):
        cache_latents.check_folder(plan)
