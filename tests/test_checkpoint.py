"""Loading whole models: where the parts of a bundle are found, defaults, the hub, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from official_bundle import AUDIO, CONFIG, OFFICIAL, TEXT_ENCODER, VAE

from nava_core import bundle, checkpoint, hub
from nava_core.bundle import find_bundle, pipeline_defaults, read_settings
from nava_core.checkpoint import load_pipeline


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
