"""Step caches, guidance intervals and LoRAs: they change a clip as asked, and nothing when they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from studio_server import random_lora
from test_layouts import CPU, LIMIT, error, load, make

from nava_core import GenerationRequest, Guidance, NavaPipeline
from nava_core.guidance import Pass, plan_guidance, step_plans
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.offload import offload_blocks
from nava_core.request import ModelSpec, RequestError, Shortcuts
from nava_core.step_cache import caching_steps, step_cache


@pytest.fixture(scope="module")
def pipeline() -> NavaPipeline:
    return load()


@pytest.fixture(scope="module")
def exact(pipeline: NavaPipeline) -> list[torch.Tensor]:
    return make(pipeline, num_inference_steps=6)


def decisions(pipeline: NavaPipeline, threshold: float, **changes: Any) -> tuple[int, int, list[torch.Tensor]]:
    """Computed and skipped steps of a run, and what it made."""
    seen = []

    def look(*_: Any) -> None:
        seen.append(step_cache(pipeline.transformer))

    made = make(
        pipeline,
        num_inference_steps=6,
        shortcuts=Shortcuts(step_cache=threshold),
        callback_on_step_end=look,
        **changes,
    )
    cache = seen[-1]
    assert cache is not None and not pipeline.transformer.is_cache_enabled
    return cache.computed, cache.skipped, made


def test_a_step_cache_skips_what_has_hardly_changed(pipeline, exact):
    computed, skipped, made = decisions(pipeline, 1e-6)
    assert (computed, skipped) == (6, 0) and error(made, exact) < LIMIT
    computed, skipped, made = decisions(pipeline, 1.0)
    assert skipped >= 3 and computed + skipped == 6
    assert LIMIT < error(made, exact) < 1.0
    assert error(make(pipeline, num_inference_steps=6), exact) == 0.0  # nothing is left behind


def test_a_step_has_one_decision_for_all_passes(pipeline):
    blocks, calls = pipeline.transformer.transformer_blocks, []
    handle = blocks[1].self_attn.register_forward_hook(lambda *call: calls.append(1))
    computed, _, _ = decisions(pipeline, 0.5)
    handle.remove()
    assert len(calls) == 4 * computed  # four passes, never some of them


def test_a_step_cache_and_offloaded_blocks_go_together(exact):
    pipeline = load()
    _, _, alone = decisions(pipeline, 1.0)
    offload_blocks(pipeline.transformer, CPU)
    assert error(decisions(pipeline, 1.0)[2], alone) < LIMIT


def test_step_caches_do_not_stack(pipeline):
    with (
        caching_steps(pipeline.transformer, 0.1),
        pytest.raises(ValueError, match="already been enabled"),
        caching_steps(pipeline.transformer, 0.1),
    ):
        pass
    assert not pipeline.transformer.is_cache_enabled
    with pytest.raises(ValueError, match="one block only"):
        single = NavaTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=0, num_single_layers=1, ffn_dim=8, text_dim=4
        )
        with caching_steps(single, 0.1):
            pass


@pytest.mark.parametrize("modality", ["audio_video", "audio", "video"])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("references", [True, False])
def test_an_axis_that_rests_is_an_axis_that_is_off(modality, align, references):
    guidance = Guidance(2.0, 1.5, 3.0, 2.5, 4.0, align=align)
    resting = plan_guidance(guidance, modality, references, list(Pass)[1:])
    assert resting.passes == (Pass.CONDITIONAL,)
    for weights in (resting.video, resting.audio):
        assert not weights or weights[Pass.CONDITIONAL] == pytest.approx(1.0)
    without_align = plan_guidance(guidance, modality, references, [Pass.MASKED])
    if align:
        off = Guidance(2.0, 1.5, 0.0, 0.0, 4.0)
        assert without_align.passes == plan_guidance(off, modality, references).passes


def test_intervals_say_which_steps_have_which_passes():
    spec = ModelSpec("tiny", num_inference_steps=10)
    request = GenerationRequest("A ball", shortcuts=Shortcuts(negative=(0.0, 0.5), align=(0.2, 1.0))).resolve(spec)
    passes = [plan.passes for plan in step_plans(request)]
    assert [Pass.NEGATIVE in kinds for kinds in passes] == [True] * 5 + [False] * 5
    assert [Pass.MASKED in kinds for kinds in passes] == [False] * 2 + [True] * 8
    assert len({id(plan) for plan in step_plans(request)}) == 3


def test_intervals_change_a_clip_and_whole_ones_do_not(pipeline, exact):
    whole = make(pipeline, num_inference_steps=6, shortcuts=Shortcuts(align=(0, 1)))
    assert error(whole, exact) == 0.0
    half = make(pipeline, num_inference_steps=6, shortcuts=Shortcuts(align=(0.0, 0.5), timbre=(0.5, 1.0)))
    assert error(half, exact) > LIMIT
    none = make(pipeline, num_inference_steps=6, shortcuts=Shortcuts(align=(0.0, 0.0)))
    off = make(pipeline, num_inference_steps=6, guidance=Guidance(video_align=0.0, audio_align=0.0))
    assert error(none, off) < LIMIT


@pytest.mark.parametrize(
    "values", [{"step_cache": 1.5}, {"step_cache": True}, {"align": (0.5, 0.2)}, {"timbre": (0.1,)}, {"negative": 0.5}]
)
def test_impossible_shortcuts_are_refused(values):
    with pytest.raises(RequestError, match="give"):
        Shortcuts(**values)


def test_a_recipe_keeps_shortcuts_and_loras():
    request = GenerationRequest(
        "A ball", shortcuts=Shortcuts(0.1, align=(0.0, 0.5)), loras=((Path("fast.safetensors"), 0.8),)
    )
    recipe = json.loads(json.dumps(request.to_recipe()))
    again = GenerationRequest.from_recipe(recipe)
    assert (again.shortcuts, again.loras) == (request.shortcuts, (("fast.safetensors", 0.8),))
    plain = GenerationRequest("A ball").to_recipe()
    assert "shortcuts" not in plain and "loras" not in plain


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(load(), tmp_path_factory.mktemp("lora"))


def merged(pipeline: NavaPipeline, lora: Path, scale: float) -> NavaPipeline:
    """The same by hand: W + scale * B A."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(lora).items()}
    for name in [name for name in tensors if "lora_A" in name]:
        update = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        weight = pipeline.transformer.get_submodule(name.removesuffix(".lora_A.weight")).weight
        weight.data += scale * update
    return pipeline


def test_a_lora_equals_merged_weights(pipeline, lora):
    plain = make(pipeline)
    with_lora = make(pipeline, loras=[(str(lora), 0.7)])
    by_hand = make(merged(load(), lora, 0.7))
    assert error(with_lora, by_hand) < LIMIT and error(with_lora, plain) > 1e-3
    assert error(make(pipeline), plain) == 0.0  # the next request has none
    assert error(make(pipeline, loras=[(str(lora), 0.0)]), plain) < LIMIT
    make(pipeline)


def test_loras_fuse_and_work_with_offloaded_blocks(lora, tmp_path):
    pipeline = load()
    by_hand = make(merged(load(), lora, 1.0))
    offload_blocks(pipeline.transformer, CPU, offload_to_disk_path=tmp_path)
    pipeline.load_lora_weights(lora, adapter_name="mine")
    assert error(make(pipeline), by_hand) < LIMIT
    pipeline.set_adapters(["mine"], [1.0])
    pipeline.fuse_lora()
    assert error(make(pipeline), by_hand) < LIMIT
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


def test_official_and_trainers_names_are_known(pipeline, lora, tmp_path):
    """`lora_down`, `lora_up` and `alpha` under official block names mean the same adapter."""
    counts = pipeline.transformer.config
    renamed = {}
    for name, tensor in load_file(lora).items():
        module, kind = name.removeprefix("transformer.").rsplit(".lora_", 1)
        _, index, rest = module.split(".", 2)
        double = int(index) < counts.num_layers
        block = f"double_blocks.{index}" if double else f"single_blocks.{int(index) - counts.num_layers}"
        renamed[f"diffusion_model.backbone.{block}.{rest}.lora_{'down' if kind[0] == 'A' else 'up'}.weight"] = tensor
        renamed[f"diffusion_model.backbone.{block}.{rest}.alpha"] = torch.tensor(8.0)  # twice the rank
    path = tmp_path / "official.safetensors"
    save_file(renamed, path)
    assert error(make(pipeline, loras=[(path, 0.25)]), make(pipeline, loras=[(lora, 0.5)])) < LIMIT
    make(pipeline)


def test_what_is_no_lora_of_this_model_is_refused(pipeline, tmp_path):
    with pytest.raises(RequestError, match=r"nowhere.*is no file"):
        make(pipeline, loras=[(tmp_path / "nowhere.safetensors", 1.0)])
    other = tmp_path / "other.safetensors"
    save_file({"transformer.blocks.0.attn.lora_A.weight": torch.zeros(2, 8)}, other)
    with pytest.raises(RequestError, match=r"no LoRA for this model.*blocks\.0\.attn"):
        make(pipeline, loras=[(other, 1.0)])
    half = tmp_path / "half.safetensors"
    save_file({"transformer_blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 8)}, half)
    with pytest.raises(RequestError, match="incomplete"):
        make(pipeline, loras=[(half, 1.0)])
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(RequestError, match="cannot be read"):
        make(pipeline, loras=[(tmp_path / "text.safetensors", 1.0)])
    with pytest.raises(RequestError, match="scale"):
        make(pipeline, loras=[(half, float("nan"))])
