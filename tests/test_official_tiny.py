"""The official bundle in miniature: each part and the whole chain against what they must return."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from official_bundle import OFFICIAL
from safetensors.torch import load_file, save_file

from nava_core import Guidance, NavaPipeline, NavaTransformer3DModel, load_pipeline
from nava_core.checkpoint import main
from nava_core.decode import decode_audio, decode_mel, decode_video, encode_audio, encode_video
from nava_core.pipeline import NavaPipelineOutput

E2E = json.loads((OFFICIAL / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(OFFICIAL / "expected.safetensors")


@pytest.fixture(scope="module")
def pipeline() -> NavaPipeline:
    return quiet(load_pipeline(OFFICIAL, device="cpu", dtype=torch.float32))


def quiet(pipeline: NavaPipeline) -> NavaPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def generate(pipeline: NavaPipeline, expected: dict[str, torch.Tensor], **changes) -> NavaPipelineOutput:
    arguments = {
        "prompt": E2E["prompt_as_typed"],
        "negative_prompt": E2E["negative_prompt"],
        "speakers": [(expected[name][0].numpy(), 16000) for name in ("speaker.waveform", "e2e.speaker2_waveform")],
        "latents": expected["e2e.noise.video"],
        "audio_latents": expected["e2e.noise.audio"],
        "num_inference_steps": E2E["steps"],
        "guidance": Guidance(**E2E["scales"]),
        "output_type": "latent",
    }
    return pipeline(**arguments | changes)


@torch.no_grad()
def test_text_encoder(pipeline, expected):
    states = pipeline.text_encoder(input_ids=expected["text.ids"][None]).last_hidden_state[0]
    assert_near(states, expected["text.embeds"], 1e-5)
    ids = pipeline.tokenizer(E2E["prompt"]).input_ids
    assert ids == expected["text.ids"].tolist()
    assert pipeline.tokenizer.pad_token == "<pad>"


def test_video_vae(pipeline, expected):
    assert_near(encode_video(pipeline.vae, expected["video.pixels"]), expected["video.latents"], 1e-5)
    first = encode_video(pipeline.vae, expected["video.pixels"][:, :1])
    assert_near(first, expected["video.first_frame_latents"], 1e-5)
    frames = torch.cat(list(decode_video(pipeline.vae, expected["video.latents"])))
    assert_near(frames.permute(3, 0, 1, 2) * 2 - 1, expected["video.decoded"], 1e-5)


def test_audio_vae_and_vocoder(pipeline, expected):
    tokens = expected["audio.latents"]
    assert_near(encode_audio(pipeline.audio_vae, expected["audio.mel"]), tokens, 1e-5)
    assert_near(decode_mel(pipeline.audio_vae, tokens), expected["audio.decoded_mel"], 1e-5)
    waveform = decode_audio(pipeline.audio_vae, pipeline.vocoder, tokens)
    assert_near(waveform, expected["audio.decoded_waveform"], 2e-5)


def test_the_whole_chain(pipeline, expected):
    latents = generate(pipeline, expected)
    assert_near(latents.latents, expected["e2e.video_latents"])
    assert_near(latents.audio_latents, expected["e2e.audio_latents"])
    clip = pipeline.decode(latents)
    assert_near(clip.frames.permute(3, 0, 1, 2) * 2 - 1, expected["e2e.frames"])
    assert_near(clip.audio, expected["e2e.waveform"])
    assert clip.sampling_rate == 48000


def test_the_bundles_settings_are_the_pipelines_defaults(pipeline):
    spec = pipeline.spec
    assert spec.guidance == Guidance(video=3.0, audio=2.0, video_align=3.0, audio_align=2.0, timbre=3.0, align=True)
    assert (spec.width, spec.height, spec.seconds, spec.num_inference_steps) == (1280, 704, 6.0, 50)
    assert spec.accepts_speakers
    assert spec.max_text_tokens == 512


def test_precision_of_the_parts_in_bfloat16():
    pipeline = load_pipeline(OFFICIAL, device="cpu", dtype=torch.bfloat16)
    precisions = {name: part.dtype for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert precisions == {
        "transformer": torch.bfloat16,
        "text_encoder": torch.bfloat16,
        "vae": torch.bfloat16,
        "audio_vae": torch.float32,
        "vocoder": torch.float32,
        "speaker_encoder": torch.float32,
    }


@pytest.fixture
def links(tmp_path) -> Path:
    """A bundle of links without backbone and configs."""
    root = tmp_path / "bundle"
    root.mkdir()
    for name in ("Wan2.2-TI2V-5B", "params", "redimnet_tiny.pt"):
        (root / name).symlink_to(OFFICIAL / name)
    return root


def test_a_ckpt_and_configs_at_the_root_load_to_the_same(links, pipeline, expected):
    torch.save({"state_dict": load_file(OFFICIAL / "NAVA.safetensors")}, links / "NAVA.ckpt")
    shutil.copy(OFFICIAL / "configs/nava.yaml", links / "nava.yaml")
    shutil.copy(OFFICIAL / "configs/NAVA_tiny.json", links / "config.json")  # nava.yaml names a file that is not there
    other = quiet(load_pipeline(links, device="cpu", dtype=torch.float32))
    weights = pipeline.transformer.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.transformer.state_dict().items())
    assert other.spec == pipeline.spec
    assert_near(generate(other, expected).latents, expected["e2e.video_latents"])


def test_a_bf16_file_loads_to_its_own_values(links):
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(OFFICIAL / "NAVA.safetensors").items()}
    save_file(tensors, links / "NAVA.safetensors")
    (links / "configs").symlink_to(OFFICIAL / "configs")
    pipeline = load_pipeline(links, device="cpu", dtype=torch.bfloat16)
    bias = pipeline.transformer.head.head.bias
    assert torch.equal(bias, tensors["backbone.head.head.bias"])


def test_the_fp8_file_loads_and_runs_near_the_full_one(expected):
    other = quiet(load_pipeline(OFFICIAL / "NAVA_fp8.safetensors", device="cpu", dtype=torch.float32))
    raw = load_file(OFFICIAL / "NAVA_fp8.safetensors")
    name = "backbone.double_blocks.0.self_attn.q.weight"
    weight = other.transformer.transformer_blocks[0].self_attn.q.weight
    assert torch.equal(weight, raw[name].float() * raw[f"{name}_scale"].float()[:, None])
    latents = generate(other, expected).latents
    reference = expected["e2e.video_latents"]
    assert 1e-4 < (latents - reference).norm() / reference.norm() < 0.1


@torch.no_grad()
def test_an_fp8_backbone_alone_runs_in_one_precision():
    config = json.loads((OFFICIAL / "configs/NAVA_tiny.json").read_text())
    model = NavaTransformer3DModel.from_official(str(OFFICIAL / "NAVA_fp8.safetensors"), config)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    output = model(None, torch.randn(1, 6, 128), torch.tensor([500.0]), torch.randn(1, 5, 32))
    assert torch.isfinite(output.audio_sample).all()


def test_a_converted_folder_loads_to_bit_equal_outputs(tmp_path, pipeline, expected):
    folder = tmp_path / "diffusers"
    main(["convert", str(OFFICIAL), str(folder)])
    converted = quiet(load_pipeline(folder, device="cpu", dtype=torch.float32))
    ours, theirs = generate(pipeline, expected), generate(converted, expected)
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.audio_latents, theirs.audio_latents)
    ours, theirs = pipeline.decode(ours), converted.decode(theirs)
    assert torch.equal(ours.frames, theirs.frames)
    assert torch.equal(ours.audio, theirs.audio)
    assert converted.spec == pipeline.spec

    by_the_library = quiet(NavaPipeline.from_pretrained(folder))
    assert_near(generate(by_the_library, expected).latents, expected["e2e.video_latents"])
    assert by_the_library.spec == pipeline.spec


@pytest.fixture(scope="module")
def converted(tmp_path_factory, pipeline) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    pipeline.save_pretrained(folder)
    return folder


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "transformer_blocks.0.norm3.bias"),
        ("text_encoder/model.safetensors", "encoder.final_layer_norm.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "quant_conv.bias"),
    ],
)
def test_a_diffusers_folder_is_loaded_as_strictly(file, name, converted, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(converted, folder)
    change_tensors(folder / file, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"missing: {name}"):
        load_pipeline(folder, device="cpu")


def test_a_diffusers_folder_that_asks_for_something_else_is_refused(converted, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(converted, folder)
    config = folder / "transformer/config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(json.dumps(json.loads(text) | {"num_experts": 4}), encoding="utf-8")
    with pytest.raises(ValueError, match="num_experts"):
        load_pipeline(folder, device="cpu")
    config.write_text(text, encoding="utf-8")
    index = folder / "model_index.json"
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("AutoencoderKLWan", "AutoencoderKL"), encoding="utf-8")
    with pytest.raises(ValueError, match="AutoencoderKL;"):
        load_pipeline(folder, device="cpu")
    index.write_text(text, encoding="utf-8")
    (folder / "vocoder/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="vocoder holds no weights"):
        load_pipeline(folder, device="cpu")


def test_a_diffusers_folder_may_lack_parts_and_be_in_shards(pipeline, tmp_path, expected):
    part = NavaPipeline(transformer=pipeline.transformer, defaults=pipeline.config.defaults)
    part.save_pretrained(tmp_path / "backbone", max_shard_size="2MB")
    assert len(list((tmp_path / "backbone/transformer").glob("*.safetensors"))) > 1
    loaded = load_pipeline(tmp_path / "backbone", device="cpu", dtype=torch.float32)
    assert loaded.vae is None
    weights = pipeline.transformer.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.transformer.state_dict().items())
