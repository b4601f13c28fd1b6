"""The backbone against the golden tensors, and the faculties that the library expects of its models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from nava_core.models.embeddings_nava import NavaRotaryPosEmbed
from nava_core.models.transformer_nava import NavaTransformer3DModel

CASES = ("joint", "masked", "speakers", "first_frame", "audio_only", "video_only", "null_speaker")


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    settings = json.loads((GOLDEN / f"{name}.json").read_text())
    return settings, load_file(GOLDEN / f"{name}_weights.safetensors"), load_file(GOLDEN / f"{name}_io.safetensors")


def run_case(model: NavaTransformer3DModel, case: str, io: dict[str, Tensor], settings: dict[str, Any]) -> Any:
    dtype = model.dtype
    video, audio = io["video"][None].to(dtype), io["audio"][None].to(dtype)
    speakers, positions = None, None
    if case in ("speakers", "audio_only", "null_speaker"):
        speakers, positions = io["speakers"][None].to(dtype), [settings["speaker_positions"]]
        if case == "null_speaker":
            speakers = torch.zeros_like(speakers)
    if case == "first_frame":
        video = torch.cat([io["first_frame"][None].to(dtype), video[:, :, 1:]], dim=2)
    return model(
        None if case == "audio_only" else video,
        None if case == "video_only" else audio,
        torch.tensor([settings["timestep"]]),
        io["text"][None].to(dtype),
        speaker_embeds=speakers,
        speaker_positions=positions,
        isolate_modalities=case == "masked",
        first_frame_is_clean=case == "first_frame",
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["tiny", "tiny_split"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 4e-6)])
@torch.no_grad()
def test_forward_reproduces_the_golden_tensors(name: str, dtype: torch.dtype, limit: float) -> None:
    settings, weights, io = golden(name)
    model = NavaTransformer3DModel.from_official(weights, settings["config"], dtype=dtype)
    checked = 0
    for case in CASES:
        if f"out.{case}.audio" not in io and f"out.{case}.video" not in io:
            continue
        output = run_case(model, case, io, settings)
        for stream, actual in (("video", output.sample), ("audio", output.audio_sample)):
            expected = io.get(f"out.{case}.{stream}")
            assert (actual is None) == (expected is None)
            if expected is not None:
                error = relative_error(actual[0], expected)
                print(f"{name} {case} {stream} {dtype} {error:.1e}")
                assert error < limit
                checked += 1
    assert checked >= 4


@torch.no_grad()
def test_an_absent_stream_may_be_left_out() -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    timestep = torch.tensor([settings["timestep"]])
    output = model(hidden_states=io["video"][None], timestep=timestep, encoder_hidden_states=io["text"][None])
    assert output.audio_sample is None
    assert relative_error(output.sample[0], io["out.video_only.video"]) < 1e-5


@torch.no_grad()
def test_one_batch_carries_joint_and_isolated_passes() -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    video, audio, text = (io[name].expand(3, *io[name].shape) for name in ("video", "audio", "text"))
    timestep = torch.tensor([settings["timestep"]])
    output = model(video, audio, timestep, text, isolate_modalities=[True, False, True])
    for index, case in enumerate(("masked", "joint", "masked")):
        assert relative_error(output.sample[index], io[f"out.{case}.video"]) < 1e-5
        assert relative_error(output.audio_sample[index], io[f"out.{case}.audio"]) < 1e-5


@torch.no_grad()
def test_each_stream_may_have_a_time_of_its_own() -> None:
    """Isolated, each is what it is alone at its own time; at equal times both are the golden ones."""
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    video, audio, text = (io[name][None] for name in ("video", "audio", "text"))
    timestep, earlier = torch.tensor([settings["timestep"]]), torch.tensor([120.0])
    both = model(video, audio, timestep, text, video_timestep=timestep)
    assert relative_error(both.sample[0], io["out.joint.video"]) < 1e-5
    assert relative_error(both.audio_sample[0], io["out.joint.audio"]) < 1e-5
    apart = model(video, audio, timestep, text, video_timestep=earlier, isolate_modalities=True)
    assert relative_error(apart.sample, model(video, None, earlier, text).sample) < 1e-5
    assert relative_error(apart.audio_sample[0], io["out.masked.audio"]) < 1e-5
    joint = model(video, audio, timestep, text, video_timestep=earlier)
    assert relative_error(joint.audio_sample[0], io["out.joint.audio"]) > 1e-3


def test_time_may_turn_at_frequencies_of_its_own() -> None:
    """Neighbouring audio tokens are told apart by the fastest; a latent frame's own token turns as the frame does."""
    released = NavaRotaryPosEmbed(32, 0.24)
    same = NavaRotaryPosEmbed(32, 0.24, time_frequencies=[10000 ** (-pair / 6) for pair in range(6)])
    fast = NavaRotaryPosEmbed(32, 0.24, time_frequencies=[1.0, 0.2, 0.05, 0.01, 2.0, 4.0])
    tables = [rope((13, 2, 2), 51, torch.device("cpu"), torch.float32) for rope in (released, same, fast)]
    torch.testing.assert_close(tables[0], tables[1])
    steps = [(table[53:, :6] / table[52:-1, :6]).angle().abs().amax(1) for table in tables]
    torch.testing.assert_close(steps[0], torch.full((50,), 0.24), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps[2], torch.full((50,), 0.96), atol=1e-5, rtol=0)
    # Frame 6 and token 25, both at one second.
    torch.testing.assert_close(tables[2][4 * 6, :6], tables[2][52 + 25, :6], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 rotary time frequencies; heads of 32 channels have 6 pairs"):
        NavaRotaryPosEmbed(32, 0.24, time_frequencies=[1.0, 0.2])


@torch.no_grad()
def test_speakers_belong_to_their_sample() -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    video, audio, text = (io[name].expand(2, *io[name].shape) for name in ("video", "audio", "text"))
    output = model(
        video,
        audio,
        torch.full((2,), settings["timestep"]),
        text,
        speaker_embeds=io["speakers"].expand(2, -1, -1),
        speaker_positions=[[], settings["speaker_positions"]],
    )
    for index, case in enumerate(("joint", "speakers")):
        assert relative_error(output.sample[index], io[f"out.{case}.video"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("keep", [False, True])
def test_whose_a_voice_is_can_be_told_only_where_its_row_keeps_its_text(keep: bool) -> None:
    """Two references that change places: the released structure gives the same clip, since cross-attention knows no
    positions and a speaker's row nothing but the voice."""
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    model.register_to_config(keep_speaker_text=keep)
    voices, rows = torch.stack([io["speakers"][0], io["speakers"][0].flip(0)]), [1, 3]
    sounds = [
        model(
            audio_hidden_states=io["audio"][None], timestep=torch.tensor([500.0]),
            encoder_hidden_states=io["text"][None], speaker_embeds=given[None], speaker_positions=[rows],
        ).audio_sample
        for given in (voices, voices.flip(0))
    ]  # fmt: skip
    assert (relative_error(*sounds) > 1e-3) is keep


@torch.no_grad()
def test_projected_text_is_reused_without_a_difference() -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    context = model.encode_context(io["text"][None])
    inputs = (io["video"][None], io["audio"][None], torch.tensor([settings["timestep"]]))
    first, second = model(*inputs, context), model(*inputs, context)
    assert torch.equal(first.sample, second.sample)
    assert relative_error(second.sample[0], io["out.joint.video"]) < 1e-5


class PlainNorm(torch.nn.Module):
    """The norms as the official code writes them: rounded to bfloat16 after each operation."""

    def __init__(self, norm: torch.nn.Module):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        squares = hidden_states.float().square().mean(-1, keepdim=True)
        return ((hidden_states.float() * torch.rsqrt(squares + self.eps)).to(hidden_states.dtype) * self.weight).float()


def plain_adaptive_norm(hidden_states: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    normed = torch.nn.functional.layer_norm(hidden_states, hidden_states.shape[-1:], eps=eps)
    return normed * (1 + scale.to(normed.dtype))[:, None] + shift.to(normed.dtype)[:, None]


def plain_gated_sum(hidden_states: Tensor, parts: Any, pieces: Any, vector: int) -> Tensor:
    update = torch.cat(list(parts), dim=1)
    gates = [piece.modulation[:, vector, None].expand(-1, piece.stop - piece.start, -1) for piece in pieces]
    return hidden_states + update * torch.cat(gates, dim=1).to(update.dtype)


@torch.no_grad()
def test_bfloat16_is_no_worse_than_the_plain_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many inputs: for a single one either may be better by a tenth, since rounding errors are random."""
    from nava_core.models import attention_nava, block_nava

    settings, weights, io = golden("tiny")
    exact, ours, plain = (
        NavaTransformer3DModel.from_official(weights, settings["config"], dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, attention_nava.NavaRMSNorm):
                setattr(module, name, PlainNorm(child))
    noise = torch.Generator().manual_seed(0)
    inputs = [
        io | {name: torch.randn(io[name].shape, generator=noise) for name in ("video", "audio", "text")}
        for _ in range(16)
    ]

    def predictions(model: NavaTransformer3DModel) -> list[Tensor]:
        outputs = [run_case(model, CASES[i % 4], values, settings) for i, values in enumerate(inputs)]
        return [stream for output in outputs for stream in (output.sample, output.audio_sample)]

    def error(predicted: list[Tensor]) -> float:
        pairs = zip(predicted, expected, strict=True)
        return float(np.mean([((a.float() - b).square().mean().sqrt() / b.std()).item() for a, b in pairs]))

    expected = predictions(exact)
    error_of_ours = error(predictions(ours))
    monkeypatch.setattr(block_nava, "adaptive_norm", plain_adaptive_norm)
    monkeypatch.setattr(block_nava, "gated_sum", plain_gated_sum)
    error_of_plain = error(predictions(plain))
    print(f"bf16 error: ours {error_of_ours:.2e}, plain {error_of_plain:.2e}")
    assert error_of_ours <= error_of_plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(1, 9, 2, 4, 4)}, r"\(1, 9, 2, 4, 4\); expected \(batch, 8, frames"),
        ({"hidden_states": torch.zeros(1, 8, 2, 3, 4)}, r"divisible by 1, 2, 2"),
        ({"audio_hidden_states": torch.zeros(1, 6, 5)}, r"\(1, 6, 5\); expected \(batch, tokens, 6\)"),
        ({"encoder_hidden_states": torch.zeros(5, 20)}, r"\(5, 20\); expected \(batch, rows, 20\)"),
        ({"encoder_hidden_states": torch.zeros(1, 13, 20)}, r"13 text rows"),
        ({"timestep": torch.zeros(2)}, r"batch sizes differ"),
        ({"isolate_modalities": [True, False]}, r"2 values for a batch of 1"),
        ({"hidden_states": None, "audio_hidden_states": None}, r"give at least one stream"),
        ({"encoder_hidden_states": None}, r"every pass needs"),
        ({"video_timestep": torch.zeros(2)}, r"video_timestep \(2,\) needs .* the shape of timestep, \(1,\)"),
        ({"video_timestep": torch.zeros(1), "hidden_states": None}, r"video_timestep .* needs a video"),
        ({"video_timestep": torch.zeros(1), "first_frame_is_clean": True}, r"no clean first frame"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    inputs = {
        "hidden_states": io["video"][None],
        "audio_hidden_states": io["audio"][None],
        "timestep": torch.zeros(1),
        "encoder_hidden_states": io["text"][None],
    }
    with pytest.raises(ValueError, match=message):
        model(**inputs | change)


def test_the_default_config_is_the_released_model() -> None:
    with torch.device("meta"):
        model = NavaTransformer3DModel()
    tensors = model.state_dict()
    assert len(tensors) == 1052
    assert sum(tensor.numel() for tensor in tensors.values()) == 6_296_995_520


def test_errors_name_the_tensor_and_the_config_key() -> None:
    settings, weights, _ = golden("tiny")
    missing = {name: tensor for name, tensor in weights.items() if not name.endswith("head_audio.head.bias")}
    with pytest.raises(ValueError, match=r"head_audio\.head\.bias"):
        NavaTransformer3DModel.from_official(missing, settings["config"])
    with pytest.raises(ValueError, match="surplus_layer"):
        NavaTransformer3DModel.from_official(
            weights | {"backbone.surplus_layer.weight": torch.ones(1)}, settings["config"]
        )
    with pytest.raises(ValueError, match="qk_norm"):
        NavaTransformer3DModel.from_official(weights, settings["config"] | {"qk_norm": False})
    with pytest.raises(ValueError, match="model_type"):
        NavaTransformer3DModel.from_official(weights, settings["config"] | {"model_type": "i2v"})
    with pytest.raises(ValueError, match="sliding"):
        NavaTransformer3DModel.from_official(weights, settings["config"] | {"sliding": 3})


@torch.no_grad()
def test_saved_and_loaded_weights_are_equal(tmp_path: Path) -> None:
    settings, weights, io = golden("tiny_split")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    model.save_pretrained(tmp_path)
    again = NavaTransformer3DModel.from_pretrained(tmp_path)
    weights, loaded = model.state_dict(), again.state_dict()
    assert weights.keys() == loaded.keys()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    expected = run_case(model, "joint", io, settings).sample
    # Not bit for bit: matrix products may round otherwise where the weights lie otherwise in memory.
    assert relative_error(run_case(again, "joint", io, settings).sample, expected) < 1e-6


@torch.no_grad()
def test_library_hooks_apply_from_outside() -> None:
    """Attention backend, step cache, layerwise casting and LoRA reach the model through the library's own switches."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.models.attention_dispatch import attention_backend
    from peft import LoraConfig

    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"])
    expected = run_case(model, "joint", io, settings).sample
    with attention_backend("native"):  # afterwards what it was: a model's backend becomes every later one's default
        model.set_attention_backend("_native_math")
        assert relative_error(run_case(model, "joint", io, settings).sample, expected) < 1e-5
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with model.cache_context("conditional"):
        run_case(model, "joint", io, settings)
        cached = run_case(model, "joint", io, settings).sample
    assert relative_error(cached, expected) < 1e-5  # the same input again: the cached residual is exact
    model.disable_cache()
    model.add_adapter(LoraConfig(target_modules=["q", "k", "v", "o"], r=2, init_lora_weights=False))
    assert relative_error(run_case(model, "joint", io, settings).sample, expected) > 1e-3


def test_gradients_reach_every_weight() -> None:
    settings, weights, io = golden("tiny")
    model = NavaTransformer3DModel.from_official(weights, settings["config"]).train()
    model.enable_gradient_checkpointing()
    output = run_case(model, "speakers", io, settings)
    (output.sample.square().mean() + output.audio_sample.square().mean()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []
