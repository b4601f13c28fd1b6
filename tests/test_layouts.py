"""Profiles, block offload, batches in turn and chunked networks: what they change, which for most is nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nava_core import Guidance, NavaPipeline, load_pipeline
from nava_core.engine.failures import explain
from nava_core.execution import Execution
from nava_core.footprint import peaks, resident_bytes
from nava_core.guidance import Pass, plan_guidance
from nava_core.offload import offload_blocks, offload_counter, restore_blocks
from nava_core.passes import PassRunner, PromptEncodings, should_batch, should_keep_text
from nava_core.placement import apply_profile, stream_layers
from nava_core.profiles import (
    Profile,
    choose_profile,
    find_profile,
    profile_names,
    read_profiles,
    sized_profiles,
    smaller_profile,
)
from nava_core.request import GenerationRequest

TINY = Path(__file__).parent / "golden" / "official_tiny"
CPU = torch.device("cpu")
LIMIT = 1e-5


def load(**options: Any) -> NavaPipeline:
    pipeline = load_pipeline(TINY, device="cpu", dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipeline: NavaPipeline, output_type: str = "latent", **changes: Any) -> list[torch.Tensor]:
    arguments: dict[str, Any] = {
        "prompt": "A ball ~~Hello~~ falls",
        "speakers": [torch.ones(192)],
        "width": 64,
        "height": 32,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance": Guidance(),
        "seed": 1,
    }
    output = pipeline(**arguments | changes, output_type=output_type)
    tensors = (output.latents, output.audio_latents) if output_type == "latent" else (output.frames, output.audio)
    return [tensor for tensor in tensors if tensor is not None]


def error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, of the largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected, strict=True))


@pytest.fixture(scope="module")
def pipeline() -> NavaPipeline:
    return load()


@pytest.fixture(scope="module")
def expected(pipeline: NavaPipeline) -> list[torch.Tensor]:
    return make(pipeline)


@pytest.mark.parametrize(
    "execution",
    [
        Execution(batch_passes=True),
        Execution(batch_passes=False),
        Execution(batch_passes=True, keep_text=False),
        Execution(batch_passes=False, keep_text=False),
        Execution(in_turn=True),
    ],
)
def test_passes_run_together_or_alone_give_the_same(pipeline, expected, execution, monkeypatch):
    monkeypatch.setattr(pipeline, "execution", execution)
    assert error(make(pipeline), expected) < LIMIT


def test_the_automatic_choices_go_by_the_length_of_the_sequence(pipeline):
    assert should_batch(pipeline.transformer, 250) and not should_batch(pipeline.transformer, 32_712)
    assert should_keep_text(250) and not should_keep_text(32_712)


def test_text_is_projected_once_for_a_clip_where_it_is_kept(pipeline, monkeypatch):
    layer, calls = pipeline.transformer.transformer_blocks[0].cross_attn.k, []
    handle = layer.register_forward_hook(lambda *call: calls.append(1))
    counted = {}
    for keep in (True, False):
        calls.clear()
        monkeypatch.setattr(pipeline, "execution", Execution(batch_passes=False, keep_text=keep))
        make(pipeline)
        counted[keep] = len(calls)
    handle.remove()
    assert counted == {True: 3, False: 3 * 4}  # text with speakers, text alone, negative; against 4 passes in 3 steps


def test_chunked_networks_give_the_same(pipeline, expected):
    for size in (1, 5, None):
        pipeline.transformer.enable_forward_chunking(size)
        assert error(make(pipeline), expected) < LIMIT
    pipeline.transformer.enable_forward_chunking()
    with pytest.raises(ValueError, match="1 row or more"):
        pipeline.transformer.enable_forward_chunking(0)


@pytest.mark.parametrize("to_disk", [False, True])
def test_offloaded_blocks_come_once_a_step_for_all_passes(to_disk, expected, tmp_path):
    pipeline = load()
    counter = offload_blocks(pipeline.transformer, CPU, offload_to_disk_path=tmp_path if to_disk else None)
    pipeline.execution = Execution(in_turn=True)
    assert error(make(pipeline), expected) < LIMIT
    blocks = pipeline.transformer.transformer_blocks
    assert counter.trips == 3 * len(blocks)  # 3 steps of 4 passes
    assert counter.bytes_onloaded == 3 * counter.block_bytes
    if to_disk:
        assert len(list(tmp_path.rglob("*.safetensors"))) == len(blocks)
    counter.reset()
    pipeline.execution = Execution(batch_passes=False)
    assert error(make(pipeline), expected) < LIMIT
    assert counter.bytes_onloaded == 4 * 3 * counter.block_bytes
    with pytest.raises(ValueError, match="offloaded already"):
        offload_blocks(pipeline.transformer, CPU)
    restore_blocks(pipeline.transformer)
    assert offload_counter(pipeline.transformer) is None
    assert error(make(pipeline), expected) < LIMIT


def test_a_pass_without_a_stream_is_a_trip_of_its_own(tmp_path):
    pipeline = load()
    guidance = Guidance(video_align=0.0)
    whole = make(pipeline, guidance=guidance)
    counter = offload_blocks(pipeline.transformer, CPU, offload_to_disk_path=tmp_path)
    pipeline.execution = Execution(in_turn=True)
    assert error(make(pipeline, guidance=guidance), whole) < LIMIT
    assert counter.bytes_onloaded == 2 * 3 * counter.block_bytes


def test_the_librarys_own_group_offloading_applies(pipeline, expected):
    other = load()
    other.transformer.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)
    assert error(make(other), expected) < LIMIT


def test_a_streamed_text_encoder_gives_the_same(pipeline, tmp_path):
    other = load()
    stream_layers(other.text_encoder.encoder, CPU, tmp_path)
    assert error(make(other), make(pipeline)) == 0.0
    assert len(list(tmp_path.rglob("*.safetensors"))) > 10


@pytest.mark.parametrize("name", [name for name, profile in read_profiles().items() if profile.weights != "int8"])
def test_profiles_give_equal_clips_where_they_are_lossless(name, pipeline, tmp_path):
    profile = find_profile(name)
    other = load(profile=name)
    assert other.profile == name
    exact, made = make(pipeline, "pt"), make(other, "pt")
    if profile.is_lossless:
        assert error(made, exact) < 1e-4
    else:
        # fp8 rounds, and tiles are blended; 64 x 32 pixels are one tile
        assert error(made, exact) < (1.0 if profile.weights == "fp8" else 1e-4)
    if profile.weights == "fp8":
        stored = {weight.dtype for weight in other.transformer.transformer_blocks[0].self_attn.q.parameters()}
        assert stored == {torch.float8_e4m3fn}
        assert other.transformer.patch_embedding.weight.dtype == torch.float32
        assert error(made, exact) > 0.0
    if profile.blocks == "offloaded":
        counter = offload_counter(other.transformer)
        assert counter is not None and counter.bytes_onloaded == 3 * counter.block_bytes


def test_int8_weights_need_torchao_and_are_nearer_than_fp8(pipeline):
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(ValueError, match="pip install torchao"):
            load(profile="int8")
        return
    exact = make(pipeline)
    assert 0.0 < error(make(load(profile="int8")), exact) < error(make(load(profile="16gb")), exact)


def test_auto_goes_by_the_free_memory():
    whole = 26_000_000_000
    found = {gigabytes: choose_profile(int(gigabytes * 1e9), whole).name for gigabytes in (79, 47, 23.5, 15.6, 11.6, 7)}
    assert found == {79: "80gb", 47: "48gb", 23.5: "24gb", 15.6: "16gb", 11.6: "12gb", 7: "8gb"}
    assert choose_profile(None, whole).name == "cpu"
    assert choose_profile(int(7e9), 14_000_000).name == "80gb"  # nava-nano stays where it is, on any card
    assert load_pipeline(TINY, device="cpu", dtype=torch.float32).profile == "cpu"


def test_profiles_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"'turbo'.*auto, 80gb"):
        find_profile("turbo")
    with pytest.raises(ValueError, match="do not go together"):
        Profile("mine", weights="fp8", blocks="offloaded")
    with pytest.raises(ValueError, match="'everywhere'"):
        Profile("mine", vae="everywhere")  # type: ignore[arg-type]


def test_out_of_memory_names_the_next_smaller_profile():
    names = [name for name in profile_names() if name not in ("auto", "cpu")]
    assert all(name == "8gb" or smaller_profile(name) in names for name in names)
    request = GenerationRequest(prompt="A ball", width=1280, height=704, num_frames=145)
    told = explain(torch.OutOfMemoryError("CUDA out of memory"), request, "24gb")
    assert told.kind == "out_of_memory" and "--profile 16gb (now 24gb)" in told.message
    assert "--profile" not in explain(torch.OutOfMemoryError("CUDA out of memory"), request, "8gb").message


def test_layout_values_go_before_the_profiles(pipeline):
    other = load(profile="cpu", layout={"vae": "tiled", "text_encoder": "streamed"})
    assert other.vae.use_tiling and other.profile == "cpu"
    assert error(make(other), make(pipeline)) == 0.0


def test_a_small_card_helps_a_runner_of_its_own(pipeline):
    """One runner, all passes in one call, whose context holds each text once."""
    transformer = pipeline.transformer
    plan = plan_guidance(Guidance(), "audio_video", True)
    dim, speakers = transformer.config.text_dim, torch.ones(1, 192)
    encodings = PromptEncodings(torch.randn(9, dim), torch.randn(7, dim), speakers, (3,))
    runner = PassRunner(transformer, plan, encodings, 10, False, execution=Execution(in_turn=True))
    (call,) = runner.calls(plan)
    assert set(call.passes) == set(Pass) and call.passes[-1] is Pass.MASKED
    masked, text = (call.context.sample(call.passes.index(kind)) for kind in (Pass.MASKED, Pass.TEXT))
    assert masked is text


def test_the_bytes_of_the_profiles_at_full_size():
    """Counted on the meta device; the limits are the cards' 10^9 bytes less 0.7 for the driver."""
    cards = {"80gb": 85.2, "48gb": 47.7, "24gb": 23.6, "16gb": 15.8, "12gb": 12.2, "8gb": 7.9, "offload": 12.2}
    for name, room in cards.items():
        most = max(peaks(name).values())
        assert most < room * 1e9, (name, peaks(name))
        assert most > 0.3 * room * 1e9
    weights = resident_bytes("80gb")
    assert weights["transformer"] == 2 * 6_296_995_520
    assert resident_bytes("16gb")["transformer"] < 0.56 * weights["transformer"]
    for profile in sized_profiles()[:-1]:
        assert max(peaks(profile).values()) < 1.05e9 * (profile.memory_gb or 0), profile


def test_a_backbone_that_leaves_for_decoding_comes_back(pipeline, tmp_path):
    other = load(profile="24gb")
    devices = []
    handle = other.vae.decoder.register_forward_pre_hook(
        lambda *call: devices.append(other.transformer.patch_embedding.weight.device)
    )
    assert error(make(other, "pt"), make(pipeline, "pt")) == 0.0 and devices
    assert error(make(other), make(pipeline)) == 0.0
    handle.remove()


def test_applying_a_profile_needs_no_reload(expected, tmp_path):
    pipeline = load()
    apply_profile(pipeline, find_profile("offload"), CPU, tmp_path)
    assert error(make(pipeline), expected) < LIMIT
    assert "torchao" not in sys.modules or importlib.util.find_spec("torchao")
