"""Loading: strictness, memory, bundle discovery, defaults, the hub, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import GOLDEN
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.loading import peak_over_weights, write_checkpoint
from nava_core import bundle, checkpoint, hub, weights
from nava_core.bundle import find_bundle, pipeline_defaults, read_settings
from nava_core.checkpoint import load_pipeline
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.official import load_audio_parts, load_text_encoder, load_video_vae
from nava_core.weights import (
    TensorFile,
    as_lazy,
    backbone_tensors,
    empty_weights,
    load_strictly,
    read_torch_file,
)

OFFICIAL = GOLDEN / "official_tiny"
CONFIG = json.loads((OFFICIAL / "configs/NAVA_tiny.json").read_text(encoding="utf-8"))
VAE = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"
TEXT_ENCODER = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"
AUDIO = "params/LTX2/ltx-2.3-22b-dev_audio_vae.safetensors"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A bundle that a test may change: its files are links, which a test replaces and never writes through."""
    root = tmp_path / "bundle"
    for path in OFFICIAL.rglob("*"):
        target = root / path.relative_to(OFFICIAL)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return root


def rewrite(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


class Small(nn.Module):
    """Tied weights, a counter, and a buffer that no file holds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(3, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(5.0), persistent=False)
        self.tie()

    def tie(self):
        self.second.weight = self.first.weight


def small_empty() -> Small:
    with empty_weights():
        module = Small()
    module.tie()
    return module


def test_load_strictly_fills_a_module():
    reference, module = Small(), small_empty()
    assert module.first.weight.is_meta
    tensors = reference.state_dict()
    del tensors["second.weight"]
    load_strictly(module, tensors, torch.bfloat16)
    assert module.second.weight is module.first.weight
    assert module.first.weight.dtype == torch.bfloat16
    assert module.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(module.table, torch.arange(5.0))
    assert torch.equal(module.first.weight, reference.first.weight.bfloat16())


def test_a_loaded_module_shares_no_memory_with_the_callers_tensors():
    tensors, module = Small().state_dict(), small_empty()
    load_strictly(module, tensors)
    before = module.first.bias.clone()
    tensors["first.bias"].add_(1)
    assert torch.equal(module.first.bias, before)


def test_load_strictly_names_all_that_does_not_fit():
    tensors = Small().state_dict()
    del tensors["first.bias"]
    tensors["third.bias"] = torch.zeros(1)
    tensors["norm.weight"] = torch.zeros(2)
    with pytest.raises(ValueError) as error:
        load_strictly(small_empty(), tensors, source="some.pt")
    message = str(error.value)
    assert message.startswith("some.pt")
    assert "1 missing: first.bias" in message
    assert "1 surplus: third.bias" in message
    assert "norm.weight is (2,) and should be (4,)" in message


def test_a_buffer_without_values_is_refused():
    with torch.device("meta"):
        module = Small()
    with pytest.raises(ValueError, match="table"):
        load_strictly(module, Small().state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_backbones_prefix_is_optional(prefix):
    tensors = load_file(OFFICIAL / "NAVA.safetensors")
    given = {prefix + name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    assert set(backbone_tensors(given)) == {name.removeprefix("backbone.") for name in tensors}


def test_a_tensor_with_and_without_prefix_is_refused():
    with pytest.raises(ValueError, match=r"backbone\.a"):
        backbone_tensors({"backbone.a": torch.zeros(1), "a": torch.zeros(1)})


def test_fp8_weights_are_multiplied_out_row_by_row():
    raw = load_file(OFFICIAL / "NAVA_fp8.safetensors")
    lazy = backbone_tensors(OFFICIAL / "NAVA_fp8.safetensors")
    name = "double_blocks.1.ffn.2.weight"
    expected = raw[f"backbone.{name}"].float() * raw[f"backbone.{name}_scale"].float()[:, None]
    assert torch.equal(lazy[name], expected)
    assert lazy.dtype_of(name) == torch.float32
    assert not any(name.endswith("_scale") for name in lazy)
    assert f"{name}_scale" not in lazy
    assert len(lazy) == 182


def test_fp8_weights_without_their_scale_are_refused():
    raw = load_file(OFFICIAL / "NAVA_fp8.safetensors")
    del raw["backbone.double_blocks.0.ffn.0.weight_scale"]
    with pytest.raises(ValueError, match=r"double_blocks\.0\.ffn\.0\.weight"):
        backbone_tensors(raw)


def test_a_scale_without_an_fp8_weight_is_surplus():
    tensors = load_file(OFFICIAL / "NAVA.safetensors")
    tensors["backbone.head.head.weight_scale"] = torch.ones(192)
    with pytest.raises(ValueError, match=r"surplus: backbone\.head\.head\.weight_scale"):
        NavaTransformer3DModel.from_official(tensors, CONFIG)


def test_the_backbones_faults_have_the_files_names():
    tensors = load_file(OFFICIAL / "NAVA.safetensors")
    del tensors["backbone.head.head.bias"], tensors["backbone.single_blocks.0.ffn.0.bias"]
    tensors["backbone.double_blocks.0.extra"] = torch.zeros(1)
    tensors["backbone.single_blocks.1.ffn.0.bias"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        NavaTransformer3DModel.from_official(tensors, CONFIG)
    message = str(error.value)
    missing = message.partition("missing: ")[2].partition(";")[0]
    assert set(missing.split(", ")) == {"backbone.head.head.bias", "backbone.single_blocks.0.ffn.0.bias"}
    assert "surplus: backbone.double_blocks.0.extra" in message
    assert "backbone.single_blocks.1.ffn.0.bias is (3,) and should be (160,)" in message


@pytest.mark.parametrize(
    ("file", "load", "missing"),
    [
        (VAE, load_video_vae, "decoder.middle.0.residual.2.weight"),
        (TEXT_ENCODER, load_text_encoder, "blocks.1.attn.k.weight"),
        (TEXT_ENCODER, load_text_encoder, "token_embedding.weight"),
    ],
)
def test_missing_and_surplus_tensors_of_torch_files_have_the_files_names(file, load, missing, tmp_path):
    tensors = torch.load(OFFICIAL / file, weights_only=True)
    del tensors[missing]
    tensors["somebody.elses"] = torch.zeros(1)
    path = tmp_path / Path(file).name
    torch.save(tensors, path)
    with pytest.raises(ValueError) as error:
        load(path)
    assert missing in str(error.value)
    if missing != "token_embedding.weight":  # without which no size is known
        assert "surplus: somebody.elses" in str(error.value)


@pytest.mark.parametrize(
    "missing",
    [
        "audio_vae.per_channel_statistics.mean-of-means",
        "vocoder.bwe_generator.resblocks.0.acts1.0.downsample.lowpass.filter",
    ],
)
def test_missing_tensors_of_the_audio_file_have_the_files_names(missing, tmp_path):
    file = TensorFile(OFFICIAL / AUDIO)
    save_file({name: file[name] for name in file if name != missing}, tmp_path / "a.safetensors", file.metadata)
    with pytest.raises(ValueError, match=f"missing: {missing}") as error:
        load_audio_parts(tmp_path / "a.safetensors")
    assert "surplus" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vocoder", "vocoder", "use_tanh_at_final"), True, "vocoder.vocoder.use_tanh_at_final"),
        (("vocoder", "bwe", "apply_final_activation"), True, "vocoder.bwe.apply_final_activation"),
        (("vocoder", "bwe", "win_size"), 1024, "vocoder.bwe.win_size"),
        (("vocoder", "bwe", "surprise"), 1, "surprise"),
        (("audio_vae", "model", "params", "ddconfig", "downsample_time"), True, "audio_vae.downsample_time"),
    ],
)
def test_an_audio_config_that_asks_for_something_else_is_refused_by_its_key(path, value, message, tmp_path):
    file = TensorFile(OFFICIAL / AUDIO)
    config = json.loads(file.metadata["config"])
    *parents, key = path
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[key] = value
    save_file({"vocoder.x": torch.zeros(1)}, tmp_path / "a.safetensors", {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=message):
        load_audio_parts(tmp_path / "a.safetensors")


def test_the_audio_config_as_ltx_publishes_it_is_accepted(tmp_path):
    file = TensorFile(OFFICIAL / AUDIO)
    config = json.loads(file.metadata["config"])
    config["audio_vae"]["model"]["params"]["ddconfig"]["downsample_time"] = False
    config["vocoder"]["bwe"] |= {"apply_final_activation": False, "win_size": 512}
    save_file({name: file[name] for name in file}, tmp_path / "a.safetensors", {"config": json.dumps(config)})
    audio_vae, vocoder = load_audio_parts(tmp_path / "a.safetensors")
    assert audio_vae.config.latent_channels == 8
    assert vocoder.config.window_length == 512


def test_a_video_vae_with_other_latents_is_refused(tmp_path):
    tensors = torch.load(OFFICIAL / VAE, weights_only=True)
    tensors["conv2.weight"] = torch.zeros(16, 16, 1, 1, 1)
    torch.save(tensors, tmp_path / "vae.pth")
    with pytest.raises(ValueError, match="16 latent channels"):
        load_video_vae(tmp_path / "vae.pth")


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_torch_files_with_code_in_them_are_refused(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Code()}, tmp_path / "NAVA.ckpt")
    with pytest.raises(ValueError, match=r"NAVA\.ckpt cannot be read as a file of weights alone"):
        as_lazy(tmp_path / "NAVA.ckpt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt"])
def test_a_file_that_is_cut_short_is_refused(name, tmp_path):
    if name.endswith("ckpt"):
        torch.save({"a": torch.zeros(1000)}, tmp_path / name)
    else:
        save_file({"a": torch.zeros(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-500])
    with pytest.raises(ValueError, match="cut"):
        as_lazy(tmp_path / name)


def test_torch_files_of_the_old_format_can_be_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(TensorFile(tmp_path / "old.pth")["a"], torch.ones(2))


def test_a_state_dict_holds_tensors_alone(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1), "epoch": 3}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="epoch"):
        TensorFile(tmp_path / "x.ckpt")
    torch.save([1], tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match="list"):
        read_torch_file(tmp_path / "y.ckpt")


def test_a_file_is_opened_anew_and_yields_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "REOPEN_AFTER_AT_LEAST", 1000)
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(30)}
    torch.save(tensors, tmp_path / "x.ckpt")
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.ckpt", "x.safetensors"):
        file = TensorFile(tmp_path / name)
        opened: list[str] = []
        reopen = file._open
        monkeypatch.setattr(file, "_open", lambda reopen=reopen, opened=opened: (opened.append("again"), reopen())[1])
        assert all(torch.equal(file[key], tensors[key]) for key in tensors)
        assert len(opened) > 5
        assert file.shape_of("t3") == (100,)


def test_asking_what_there_is_reads_nothing(monkeypatch):
    lazy = backbone_tensors(OFFICIAL / "NAVA_fp8.safetensors")
    monkeypatch.setattr(TensorFile, "__getitem__", lambda self, name: pytest.fail(f"read {name}"))
    assert "head.head.weight" in lazy
    assert "double_blocks.0.ffn.0.weight" in lazy
    assert "nothing" not in lazy
    assert lazy.shape_of("head.head.weight") == (192, 96)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_loading_needs_little_more_memory_than_the_weights(suffix, tmp_path):
    """Counted is all resident memory, also the mapped pages of the file, which is twice the weights' size."""
    path = tmp_path / f"NAVA{suffix}"
    assert write_checkpoint(path) > 200e6
    assert 1.0 <= peak_over_weights(path) <= 1.1


def test_a_bundle_is_found_in_its_published_form():
    found = find_bundle(OFFICIAL)
    assert found.backbone.name == "NAVA.safetensors"
    assert found.speaker_encoder is not None
    assert found.speaker_encoder.name == "redimnet_tiny.pt"
    assert found.backbone_config == CONFIG | {"no_split_norm_ffn": True, "add_spk_emb": True}


def test_other_backbones_serve_where_the_first_is_missing(copy):
    (copy / "NAVA.safetensors").unlink()
    assert find_bundle(copy).backbone.name == "NAVA_fp8.safetensors"


def test_configs_may_stand_at_the_root(copy):
    settings = yaml.safe_load((copy / "configs/nava.yaml").read_text(encoding="utf-8"))
    settings["model"]["joint_config"] = "configs/NAVA_6B.json"
    shutil.rmtree(copy / "configs")
    (copy / "nava.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (copy / "config.json").write_text(json.dumps(CONFIG | {"_class_name": "WanAVModel"}), encoding="utf-8")
    assert find_bundle(copy).backbone_config == find_bundle(OFFICIAL).backbone_config


def test_without_any_config_the_published_sizes_serve(copy):
    shutil.rmtree(copy / "configs")
    found = find_bundle(copy)
    assert found.backbone_config == {}
    assert found.settings == {}


def test_the_paths_that_a_caller_gives_go_before_the_bundles(copy, tmp_path):
    rewrite(tmp_path / "my.yaml", "video_guidance_scale: 7.0\n")
    found = find_bundle(copy, copy / "NAVA_fp8.safetensors", tmp_path / "my.yaml", copy / "redimnet_tiny_b.pt")
    assert found.backbone.name == "NAVA_fp8.safetensors"
    assert found.settings == {"video_guidance_scale": 7.0}
    assert found.speaker_encoder == copy / "redimnet_tiny_b.pt"


def test_the_published_speaker_encoder_goes_before_others(copy):
    (copy / "params/M-vb2+vox2+cnc-ft_mix.pt").symlink_to(copy / "redimnet_tiny_b.pt")
    assert find_bundle(copy).speaker_encoder == copy / "params/M-vb2+vox2+cnc-ft_mix.pt"


def test_a_bundle_without_speaker_encoder_is_complete(copy):
    for path in copy.glob("*.pt"):
        path.unlink()
    torch.save({"something": "else"}, copy / "notes.pt")
    assert find_bundle(copy).speaker_encoder is None


@pytest.mark.parametrize("file", [*bundle.PART_FILES.values()])
def test_a_missing_part_is_named_with_the_place_where_it_is_expected(file, copy):
    (copy / file).unlink()
    with pytest.raises(ValueError, match="incomplete") as error:
        load_pipeline(copy)
    assert str(copy / file) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheduler_unipc: false", "scheduler_unipc = False"),
        ("data: {audio_tokens_per_sec: 50}", "data.audio_tokens_per_sec = 50"),
        ("model: {shift: 5, shift_audio: 3}", "model.shift_audio = 3"),
        ("- 1", "list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_settings_that_ask_for_something_else_are_refused(text, message, tmp_path):
    rewrite(tmp_path / "nava.yaml", text)
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / "nava.yaml")


def test_a_bundles_settings_go_before_ours():
    ours = read_settings(checkpoint.DEFAULT_SETTINGS)
    theirs = {"video_guidance_scale": 5.0, "timbre_cfg": False, "align_3d_cfg": False, "model": {"shift": 3.0}}
    defaults = pipeline_defaults(ours, theirs)
    assert defaults["guidance"] == {
        "video": 5.0,
        "audio": 2.0,
        "video_align": 3.0,
        "audio_align": 2.0,
        "timbre": 0.0,
        "align": False,
    }
    assert defaults["shift"] == 3.0
    assert defaults["fps"] == 24
    assert (defaults["width"], defaults["height"], defaults["seconds"]) == (1280, 704, 6.0)
    assert defaults["num_inference_steps"] == 50
    assert "字幕" in defaults["negative_prompt"]
    assert "字幕" not in defaults["negative_prompt_audio"]


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no NAVA model: it holds neither"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match="There is no model at"):
        load_pipeline(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="There is no model at"):
        load_pipeline(tmp_path / "notes.txt")


def test_a_missing_default_model_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "DEFAULT_MODEL", tmp_path / "nava-nano")
    with pytest.raises(ValueError, match="nava-nano"):
        load_pipeline()


def test_unknown_profiles_and_devices_are_refused():
    with pytest.raises(ValueError, match=r"'turbo'.*auto"):
        load_pipeline(OFFICIAL, profile="turbo")
    with pytest.raises(ValueError, match="'gpu'"):
        load_pipeline(OFFICIAL, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            load_pipeline(OFFICIAL, device="cuda")


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_default_precision_is_one_that_the_device_computes_in(native, dtype, monkeypatch):
    monkeypatch.setattr(checkpoint, "cpu_computes_in_bfloat16", lambda: native)
    assert checkpoint._default_dtype(torch.device("cpu")) == dtype
    assert checkpoint._default_dtype(torch.device("cuda")) == torch.bfloat16


BUNDLE_ON_THE_HUB = [
    "NAVA.ckpt",
    "NAVA.safetensors",
    "NAVA_fp8.safetensors",
    "README.md",
    "assets/demo.mp4",
    "configs/NAVA_6B.json",
    "configs/nava.yaml",
    VAE,
    TEXT_ENCODER,
    "Wan2.2-TI2V-5B/google/umt5-xxl/spiece.model",
    "Wan2.2-TI2V-5B/google/umt5-xxl/tokenizer.json",
    AUDIO,
    "params/M-vb2+vox2+cnc-ft_mix.pt",
]


def test_only_what_is_needed_of_a_bundle_is_downloaded():
    needed = hub.files_needed(BUNDLE_ON_THE_HUB)
    left_out = {
        "NAVA.ckpt",
        "NAVA_fp8.safetensors",
        "README.md",
        "assets/demo.mp4",
        "Wan2.2-TI2V-5B/google/umt5-xxl/spiece.model",
    }
    assert set(needed) == set(BUNDLE_ON_THE_HUB) - left_out
    assert "NAVA_fp8.safetensors" in hub.files_needed([name for name in BUNDLE_ON_THE_HUB if "NAVA." not in name])


def test_only_what_is_needed_of_a_diffusers_model_is_downloaded():
    names = ["model_index.json", "vae/config.json", "vae/x.safetensors", "vae/x.bin", "README.md", "a/b/c.json"]
    assert hub.files_needed(names) == ["model_index.json", "vae/config.json", "vae/x.safetensors"]


def test_a_hub_model_is_downloaded(monkeypatch):
    asked = {}

    def snapshot_download(repo_id, allow_patterns):
        asked[repo_id] = allow_patterns
        return str(OFFICIAL)

    monkeypatch.setattr(hub, "list_repo_files", lambda repo_id: BUNDLE_ON_THE_HUB)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert checkpoint._locate("somebody/NAVA") == (OFFICIAL, None)
    assert asked == {"somebody/NAVA": hub.files_needed(BUNDLE_ON_THE_HUB)}


def test_a_hub_model_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(hub, "list_repo_files", lambda repo_id: ["config.json", "model.safetensors"])
    with pytest.raises(ValueError, match="is not a NAVA model"):
        load_pipeline("somebody/llama")


def test_without_a_network_the_hubs_cache_serves(monkeypatch, tmp_path):
    def unreachable(repo_id):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "list_repo_files", unreachable)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, local_files_only: str(tmp_path))
    assert hub.download("somebody/NAVA") == tmp_path

    def not_cached(repo_id, local_files_only):
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(hub, "snapshot_download", not_cached)
    with pytest.raises(ValueError, match=r"no folder here.*no route to host"):
        load_pipeline("somebody/NAVA")
    assert issubclass(HfHubHTTPError, OSError)


def test_convert_refuses_a_folder_with_something_in_it(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        checkpoint.main(["convert", str(OFFICIAL), str(tmp_path)])
    assert end.value.code == 2
    assert "not an empty folder" in capsys.readouterr().err
