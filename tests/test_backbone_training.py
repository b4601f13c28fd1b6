"""The backbone's trainer: its loss in both precisions, and that a run can be stopped, resumed and built on."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from nava_core.models.attention_nava import apply_rotary, split_heads
from training import backbone, common, shots
from training.clips import CachedClips, WorldCaptions
from training.nano_model import NanoModel

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "training" / "weights"
KINDS = {"fall": 1.0, "talk": 1.0, "pair": 1.0}


@pytest.fixture
def config() -> dict[str, Any]:
    """The committed recipe with a model of a few thousand weights."""
    config = common.load_config(ROOT / "training" / "configs" / "backbone.yaml")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 1, "num_single_layers": 1}
    latents = {"in_channels": 4, "out_channels": 4, "audio_in_channels": 6, "audio_out_channels": 6}
    config["transformer"] |= {**sizes, **latents, "text_dim": 16, "freq_dim": 32}
    config["text_encoder"] |= {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1}
    return {**config, "kinds": KINDS, "batch_size": 2, "captions": 3, "precision": "float32"}


@pytest.fixture
def kept_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer sets its process's threads and denormals; the other tests' stay as they are."""
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda flush: True)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Four clips of noise, and the shots that they would be of."""
    folder = tmp_path / "latents"
    folder.mkdir()
    noise = torch.Generator().manual_seed(0)
    shapes = {"video": (4, 4, 3, 4, 4), "audio": (4, 10, 6)}
    tensors = {name: torch.randn(shape, generator=noise).half() for name, shape in shapes.items()}
    voices = torch.randn(4, 2, 192, generator=noise)
    voices[:2] = 0
    save_file({"speakers": voices}, folder / "voices_00000.safetensors")
    save_file(tensors, folder / "shard_00000.safetensors")
    drawn = [shots.sample_shot(np.random.default_rng(seed), kind) for seed, kind in enumerate(("fall", "fall"))]
    for seed, kind in enumerate(("talk", "pair")):
        shot = shots.sample_shot(np.random.default_rng(seed), kind)
        people = [replace(person, words=("hello", "moon"), start=1.0 - turn) for turn, person in enumerate(shot.people)]
        drawn.append(replace(shot, people=tuple(people)))
    text = json.dumps([asdict(shot) for shot in drawn])
    (folder / "shard_00000.json").write_text(text, encoding="utf-8")
    (folder / "cache.json").write_text(json.dumps({"encoders": "a", "shard": 4}), encoding="utf-8")
    return folder


def first_loss(config: dict[str, Any], latents: Path) -> tuple[float, NanoModel]:
    """The loss of one fixed step, with its gradients."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    model = NanoModel(config, len(tokenizer))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    rng = np.random.default_rng(0)
    batch = CachedClips([latents], tokenizer, 128, {"talk": 1.0, "pair": 1.0}).draw(rng, 2, empty_prompt=0.0)
    torch.manual_seed(1)
    found = backbone.flow_loss(model, batch, config, rng)
    (found.video + found.audio).backward()
    return (found.video + found.audio).item(), model


def test_bfloat16_multiplies_and_float32_keeps(config: dict[str, Any], latents: Path) -> None:
    expected, _ = first_loss(config, latents)
    loss, model = first_loss({**config, "precision": "bfloat16"}, latents)
    assert loss != expected
    assert loss == pytest.approx(expected, rel=0.02)
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert not [name for name in without if not name.startswith(("middle_heads", "caption_head"))]
    assert {value.grad.dtype for value in model.parameters() if value.grad is not None} == {torch.float32}


def test_a_run_is_resumed_and_built_on(
    config: dict[str, Any], latents: Path, tmp_path: Path, kept_threads: None
) -> None:
    out = tmp_path / "run"
    backbone.train({**config, "minutes": 0.03}, [latents], WEIGHTS, out, resume=False)
    first = common.load_checkpoint(out)
    assert first is not None and first["step"] > 0
    backbone.train({**config, "minutes": 0.06}, [latents], WEIGHTS, out, resume=True)
    second = common.load_checkpoint(out)
    assert second is not None and second["step"] > first["step"] and second["spent"] >= 60 * 0.06
    built_on = tmp_path / "next"
    once_read = {**config, "minutes": 1e-9, "reading_minutes": 60, "captions_read": 8}
    backbone.train(once_read, [latents], WEIGHTS, built_on, resume=False, start=out)
    assert (built_on / "tokenizer").is_dir()
    for part in ("transformer", "text_encoder", "."):
        kept, made = (load_file(next((folder / part).glob("*.safetensors"))) for folder in (out, built_on))
        assert all(torch.equal(value, made[name]) for name, value in kept.items())


def test_the_relative_attention_biases_have_a_rate_of_their_own(config: dict[str, Any]) -> None:
    model = NanoModel(config, 50).text_encoder
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizers = backbone.Optimizers(model, {**config, "learning_rate": 1e-3, "distance_learning_rate": 0.1})
    model(torch.arange(20)[None]).last_hidden_state.square().sum().backward()
    optimizers.step(0.5)
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.named_parameters()}
    biases = {name for name in moved if "relative_attention_bias" in name}
    assert biases and all(moved[name] == pytest.approx(0.05, rel=0.01) for name in biases)
    assert max(moved[name] for name in moved.keys() - biases) < 0.01


def test_one_of_two_uneven_streams_has_any_noise_level_and_the_other_is_nearly_noise(config: dict[str, Any]) -> None:
    video, audio = backbone.noise_levels(4000, {**config, "uneven": 0.5}, np.random.default_rng(0))
    apart = video != audio
    assert apart.float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.maximum(video, audio)[apart].min() >= 1 - backbone.NOISE_WIDTH
    assert (video < audio)[apart].float().mean() == pytest.approx(backbone.SEEN_SHARE, abs=0.05)
    assert torch.minimum(video, audio)[apart].mean() == pytest.approx(0.5, abs=0.05)
    even = backbone.noise_levels(100, {**config, "uneven": 0.0}, np.random.default_rng(0))
    assert torch.equal(*even)


def test_samples_take_turns_with_several_time_shifts(config: dict[str, Any]) -> None:
    def mean(shift: float | list[float]) -> float:
        rng = np.random.default_rng(0)
        return backbone.noise_levels(8000, {**config, "uneven": 0.0, "time_shift": shift}, rng)[0].mean().item()

    assert mean([1.0, 5.0]) == pytest.approx((mean(1.0) + mean(5.0)) / 2, abs=0.02)


def test_a_head_that_begins_in_time_attends_to_its_own_moment() -> None:
    """Of a model of nano's sizes and random weights, on noise: the video tokens of an audio token's own moment."""
    torch.manual_seed(0)
    model = NanoModel(common.load_config(ROOT / "training" / "configs" / "backbone_stage2.yaml"), 50)
    frames, tokens = 13, 13 * 16

    def share() -> float:
        seen: list[torch.Tensor] = []
        blocks = model.transformer.transformer_blocks
        attention = blocks[len(blocks) // 2].self_attn

        def turned(norm: Any, layer: Any, stream: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
            """Of the last head, (batch, tokens, channels)."""
            return apply_rotary(split_heads(norm(layer(stream)), 4), rotary, torch.float32)[:, :, -1]

        def look(_module: Any, given: Any) -> None:
            (video, audio), rotary = given[0], given[1]
            query = turned(attention.norm_q_audio, attention.q_audio, audio, rotary[tokens:])
            key = turned(attention.norm_k, attention.k, video, rotary[:tokens])
            weights = (query @ key.transpose(1, 2) / 32**0.5).softmax(-1)
            seen.append(weights.unflatten(2, (frames, 16)).sum(3))

        handle = attention.register_forward_pre_hook(look)
        with torch.no_grad():
            model.transformer(
                torch.randn(4, 16, frames, 8, 8), torch.randn(4, 51, 64), torch.tensor([500.0]), torch.zeros(4, 2, 128)
            )
        handle.remove()
        (by_frame,) = seen
        own = (0.24 * torch.arange(51)).round().long().clamp(max=frames - 1)
        return by_frame[:, torch.arange(51), own].mean().item()

    before = share()
    model.attend_in_time()
    assert before < 0.15 and share() > 0.4


def test_captions_are_read_before_clips_are_made(config: dict[str, Any], kept_threads: None) -> None:
    """The text encoder learns what they say, and nothing else of the model changes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    torch.manual_seed(0)
    model = NanoModel(config, len(tokenizer))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    captions = WorldCaptions(tokenizer, 128, KINDS)
    asked = captions.draw(np.random.default_rng(1), 64)
    unread = model.caption_loss(asked).item()
    reading = {**config, "reading_minutes": 0.2, "captions_read": 8}
    backbone.read_captions(model, captions, reading, np.random.default_rng(0), common.Ranks())
    assert model.caption_loss(asked).item() < 0.8 * unread
    moved = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"text_encoder", "caption_head"}


def test_sound_alone_has_its_share_of_the_batches(
    config: dict[str, Any], latents: Path, tmp_path: Path, kept_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "sound"
    shutil.copytree(latents, sound)
    tensors = load_file(latents / "shard_00000.safetensors")
    save_file({"audio": tensors["audio"]}, sound / "shard_00000.safetensors")
    seen = []
    loss = backbone.flow_loss

    def counted(model: Any, batch: Any, chosen: dict[str, Any], rng: Any) -> Any:
        seen.append((batch.video is None, len(batch.audio), chosen["time_shift"]))
        return loss(model, batch, chosen, rng)

    monkeypatch.setattr(backbone, "flow_loss", counted)
    alone = {"share": 0.5, "batch_size": 3, "time_shift": 1.5}
    for share, nowhere in ((0.5, latents), (1.0, tmp_path / "none")):
        seen.clear()
        mixed = {**config, "minutes": 0.05, "sound_alone": {**alone, "share": share}}
        backbone.train(mixed, [nowhere], WEIGHTS, tmp_path / f"run{share}", False, sound_latents=[sound])
        assert {*seen} == {(True, 3, 1.5)} | ({(False, 2, config["time_shift"])} if share < 1 else set())


def test_no_latents_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run python -m training\.cache_latents first"):
        CachedClips([tmp_path], None, 128, KINDS)  # type: ignore[arg-type]


def test_folders_are_one_cache_if_one_encoder_made_them(latents: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    more = tmp_path / "more"
    shutil.copytree(latents, more)
    assert len(CachedClips([latents, more], tokenizer, 128, KINDS)) == 2 * len(
        CachedClips([more], tokenizer, 128, KINDS)
    )
    (more / "cache.json").write_text(json.dumps({"encoders": "b", "shard": 4}), encoding="utf-8")
    with pytest.raises(ValueError, match="different encoders"):
        CachedClips([latents, more], tokenizer, 128, KINDS)


def test_a_share_of_no_sound_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["backbone", "--sound_share", "0.5"])
    with pytest.raises(SystemExit):
        backbone.main()
    assert "--sound_share 0.5 is a share of --sound_latents" in capsys.readouterr().err


def test_voices_go_where_their_spans_are_in_the_order_of_speaking(latents: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    clips = CachedClips([latents], tokenizer, 128, {"pair": 1.0})
    batch = clips.draw(np.random.default_rng(0), 2, empty_prompt=0.0)
    stored = load_file(latents / "voices_00000.safetensors")["speakers"][3]
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_2>")
    for row, positions in enumerate(batch.speaker_positions):
        assert [batch.ids[row, position] for position in positions] == [sentinel] * 2
        torch.testing.assert_close(batch.speakers[row], stored.flip(0))  # the second person speaks first
    falling = CachedClips([latents], tokenizer, 128, {"fall": 1.0}).draw(np.random.default_rng(0), 2, 0.0)
    assert falling.speaker_positions == [(), ()]


def test_batches_of_larger_clips_hold_fewer_and_ranks_draw_one_shape(latents: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    wide = tmp_path / "wide"
    shutil.copytree(latents, wide)
    tensors = load_file(wide / "shard_00000.safetensors")
    video, audio = tensors["video"], tensors["audio"]
    wider = {"video": video.repeat(1, 1, 1, 2, 2), "audio": audio.repeat(1, 4, 1)}
    save_file(wider, wide / "shard_00000.safetensors")
    clips = CachedClips([latents, wide], tokenizer, 128, {"fall": 1.0, "talk": 1.0})
    seen = set()
    for seed in range(12):
        drawn = [clips.draw(np.random.default_rng(rank), 8, 0.0, np.random.default_rng(seed)) for rank in range(2)]
        assert drawn[0].audio.shape == drawn[1].audio.shape
        seen.add(drawn[0].audio.shape[:2])
    assert seen == {(8, 10), (2, 40)}


def test_kinds_are_drawn_in_their_shares_and_voices_left_out(config: dict[str, Any], latents: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    rng = np.random.default_rng(0)
    batch = CachedClips([latents], tokenizer, 128, {"fall": 1.0, "pair": 3.0}).draw(rng, 400, 0.0)
    two = np.array([len(rows) == 2 for rows in batch.speaker_positions])
    assert 0.68 < two.mean() < 0.82
    wanted = {**config, "speaker_absent": 0.5, "speaker_null": 0.25}
    voices, positions = backbone.draw_voices(batch, np.arange(400) < 50, wanted, rng)
    assert not any(positions[:50])
    placed = np.array([len(rows) == 2 for rows in positions])
    assert 0.4 < placed[50:].sum() / two[50:].sum() < 0.6
    given = voices.abs().sum(-1) > 0
    assert 0.65 < given[placed].float().mean() < 0.85 and not given[~placed].any()


def test_a_new_vocabulary_keeps_the_rows_of_known_pieces(config: dict[str, Any], tmp_path: Path, latents: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    model = NanoModel(config, len(tokenizer))
    for part in ("transformer", "text_encoder"):
        getattr(model, part).save_pretrained(tmp_path / part)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    larger = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    larger.add_tokens(["quokka"])
    grown = NanoModel(config, len(larger))
    grown.load(tmp_path, larger)
    old, new = (one.text_encoder.shared.weight for one in (model, grown))
    torch.testing.assert_close(new[: len(tokenizer)], old)
    assert new.shape[0] == old.shape[0] + 1 and new[-1].abs().sum() > 0


@pytest.mark.parametrize("layers", [{"num_layers": 2}, {"num_layers": 4, "num_single_layers": 0, "split_ffn": True}])
def test_a_model_goes_on_with_more_layers_and_weights(
    config: dict[str, Any], layers: dict[str, Any], tmp_path: Path, latents: Path
) -> None:
    """Added layers, and the sound's own weights in those that both streams shared, change nothing until they learn."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer")
    config["transformer"]["num_single_layers"] = 2
    _, model = first_loss(config, latents)
    for part in ("transformer", "text_encoder"):
        getattr(model, part).save_pretrained(tmp_path / part)
    more = {"transformer": config["transformer"] | layers, "text_encoder": {**config["text_encoder"], "num_layers": 3}}
    grown = NanoModel({**config, **more}, len(tokenizer))
    grown.load(tmp_path, tokenizer)
    batch = CachedClips([latents], tokenizer, 128, {"pair": 1.0}).draw(np.random.default_rng(0), 2, empty_prompt=0.0)
    made = []
    for one in (model, grown):
        states = one.text_states(batch, torch.tensor([False, True]))
        made.append(one.transformer(batch.video, batch.audio, torch.tensor([500.0, 900.0]), states))
    torch.testing.assert_close(made[1].sample, made[0].sample)
    torch.testing.assert_close(made[1].audio_sample, made[0].audio_sample)
    (made[1].sample.square().mean() + made[1].audio_sample.square().mean()).backward()
    learning = {
        name: value.grad is not None and value.grad.abs().sum() > 0
        for name, value in grown.transformer.transformer_blocks.named_parameters()
        if name.endswith((".o.weight", ".o_audio.weight", ".2.weight"))
    }
    assert learning and all(learning.values()), learning
