"""Files of weights: what of them fits a module, what is refused and why, and how little memory reading takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from official_bundle import AUDIO, CONFIG, OFFICIAL, TEXT_ENCODER, VAE
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.loading import peak_over_weights, write_checkpoint
from nava_core import weights
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
