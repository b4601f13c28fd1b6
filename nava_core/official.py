"""The official components other than the backbone -> the libraries' classes, strictly.

Each file of a bundle has its publisher's tensor names. A function here reads one of them: sizes from its tensors or its
metadata, tensors under the library's names, into a module that was built without memory for weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from nava_core.weights import RenamedTensors, TensorFile, empty_weights, listing, load_strictly

Device = torch.device | str | None

T5_BLOCK_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
T5_NAMES = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
T5_MAX_DISTANCE = 128

AUDIO_VAE_PREFIX, VOCODER_PREFIX = "audio_vae.", "vocoder."
AUDIO_VAE_NAMES = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
VOCODER_SEGMENTS = {
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "act_post": "act_out",
}
# Names of the metadata -> names of LTX2VocoderWithBWE; for its second generator with the prefix bwe_.
VOCODER_CONFIG_NAMES = {
    "upsample_initial_channel": "hidden_channels",
    "upsample_rates": "upsample_factors",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "resblock_kernel_sizes": "resnet_kernel_sizes",
    "resblock_dilation_sizes": "resnet_dilations",
    "activation": "act_fn",
    "use_bias_at_final": "final_bias",
}
BWE_CONFIG_NAMES = {
    "n_fft": "filter_length",
    "hop_length": "hop_length",
    "num_mels": "num_mel_channels",
    "input_sampling_rate": "input_sampling_rate",
    "output_sampling_rate": "output_sampling_rate",
}
AUDIO_VAE_CONFIG_NAMES = {
    "ch": "base_channels",
    "out_ch": "output_channels",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "in_channels": "in_channels",
    "resolution": "resolution",
    "z_channels": "latent_channels",
    "norm_type": "norm_type",
    "causality_axis": "causality_axis",
    "dropout": "dropout",
    "mid_block_add_attention": "mid_block_add_attention",
    "mel_bins": "mel_bins",
    "double_z": "double_z",
}


def load_video_vae(path: Path, dtype: torch.dtype | None = None, device: Device = None) -> AutoencoderKLWan:
    """`Wan2.2_VAE.pth` as AutoencoderKLWan; its widths are the tensors', all else is Wan2.2's.

    Raises ValueError where tensors are missing, surplus or misshapen, or the latents are not Wan2.2's.
    """
    tensors = TensorFile(path)
    names = _key_map("wan22_vae_keys.json")
    config = _key_map("wan22_vae_config.json")
    if "encoder.conv1.weight" in tensors and "decoder.head.2.weight" in tensors and "conv2.weight" in tensors:
        config["base_dim"] = tensors.shape_of("encoder.conv1.weight")[0]
        config["decoder_base_dim"] = tensors.shape_of("decoder.head.2.weight")[1]
        z_dim = tensors.shape_of("conv2.weight")[0]
        if z_dim != config["z_dim"]:
            raise ValueError(
                f"{path} has {z_dim} latent channels; NAVA's video latents are those of Wan2.2, with "
                f"{config['z_dim']}. Take Wan2.2_VAE.pth of the Wan2.2-TI2V-5B release."
            )
    with empty_weights():
        vae = AutoencoderKLWan(**config)
    inverse = {ours: theirs for theirs, ours in names.items()}
    renamed = RenamedTensors(
        {names.get(name, name): (tensors, name) for name in tensors}, lambda name: inverse.get(name, name)
    )
    load_strictly(vae, renamed, dtype, device, source=str(path))
    return vae.eval()


def load_text_encoder(path: Path, dtype: torch.dtype | None = None, device: Device = None) -> UMT5EncoderModel:
    """`models_t5_umt5-xxl-enc-bf16.pth` as UMT5EncoderModel; all sizes are the tensors'.

    Raises ValueError where tensors are missing, surplus or misshapen.
    """
    tensors = TensorFile(path)
    with empty_weights():
        model = UMT5EncoderModel(_t5_config(tensors))
    model.tie_weights()
    renamed = RenamedTensors({_t5_name(name): (tensors, name) for name in tensors}, _t5_original_name)
    load_strictly(model, renamed, dtype, device, source=str(path))
    return model.eval()


def _t5_config(tensors: TensorFile) -> UMT5Config:
    first = {name: f"blocks.0.{name}.weight" for name in ("pos_embedding.embedding", "attn.q", "ffn.fc1")}
    first["token_embedding"] = "token_embedding.weight"
    if missing := [name for name in first.values() if name not in tensors]:
        raise ValueError(
            f"{tensors.path} has no tensors {', '.join(missing)}. Expected are the original names of "
            "models_t5_umt5-xxl-enc-bf16.pth of the Wan2.2-TI2V-5B release."
        )
    shapes = {name: tensors.shape_of(full) for name, full in first.items()}
    buckets, num_heads = shapes["pos_embedding.embedding"]
    return UMT5Config(
        vocab_size=shapes["token_embedding"][0],
        d_model=shapes["token_embedding"][1],
        d_kv=shapes["attn.q"][0] // num_heads,
        d_ff=shapes["ffn.fc1"][0],
        num_layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=T5_MAX_DISTANCE,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def _t5_name(official: str) -> str:
    stem, _, leaf = official.rpartition(".")
    if stem in T5_NAMES:
        return f"{T5_NAMES[stem]}.{leaf}"
    kind, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    if kind == "blocks" and part in T5_BLOCK_NAMES:
        return f"encoder.block.{index}.{T5_BLOCK_NAMES[part]}.{leaf}"
    return official


def _t5_original_name(ours: str) -> str:
    stem, _, leaf = ours.rpartition(".")
    for theirs, name in T5_NAMES.items():
        if stem == name:
            return f"{theirs}.{leaf}"
    index, _, part = stem.removeprefix("encoder.block.").partition(".")
    inverse = {name: theirs for theirs, name in T5_BLOCK_NAMES.items()}
    return f"blocks.{index}.{inverse[part]}.{leaf}" if part in inverse else ours


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """umt5's `tokenizer.json`, which says nothing of its special tokens' roles."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def load_audio_parts(
    path: Path, dtype: torch.dtype | None = None, device: Device = None
) -> tuple[AutoencoderKLLTX2Audio, LTX2VocoderWithBWE]:
    """`ltx-2.3-22b-dev_audio_vae.safetensors`: the audio autoencoder and the vocoder; all sizes are its metadata's.

    Raises ValueError where the metadata lacks the config or asks for what the classes do not do, or where tensors are
    missing, surplus or misshapen.
    """
    tensors = TensorFile(path)
    if "config" not in tensors.metadata:
        raise ValueError(f"{path} has no JSON config in its metadata. Take the audio file of the LTX-2.3 release.")
    config = json.loads(tensors.metadata["config"])
    strangers = [name for name in tensors if not name.startswith((AUDIO_VAE_PREFIX, VOCODER_PREFIX))]
    if strangers:
        raise ValueError(
            f"{path} holds tensors of neither {AUDIO_VAE_PREFIX} nor {VOCODER_PREFIX}: {listing(strangers)}."
        )
    with empty_weights():
        audio_vae = AutoencoderKLLTX2Audio(**_audio_vae_config(config, path))
        vocoder = LTX2VocoderWithBWE(**_vocoder_config(config, path))
    for module, prefix, rename, undo in (
        (audio_vae, AUDIO_VAE_PREFIX, _audio_vae_name, _audio_vae_original_name),
        (vocoder, VOCODER_PREFIX, _vocoder_name, _vocoder_original_name),
    ):
        load_strictly(module, _part(tensors, prefix, rename, undo), dtype, device, source=str(path))
    return audio_vae.eval(), vocoder.eval()


def _part(tensors: TensorFile, prefix: str, rename: Callable[[str], str], undo: Callable[[str], str]) -> RenamedTensors:
    names = {rename(name.removeprefix(prefix)): (tensors, name) for name in tensors if name.startswith(prefix)}
    return RenamedTensors(names, lambda name: prefix + undo(name))


def _audio_vae_name(official: str) -> str:
    return AUDIO_VAE_NAMES.get(official, official)


def _audio_vae_original_name(ours: str) -> str:
    return {name: theirs for theirs, name in AUDIO_VAE_NAMES.items()}.get(ours, ours)


def _vocoder_original_name(ours: str) -> str:
    inverse = {name: theirs for theirs, name in VOCODER_SEGMENTS.items()}
    segments = [inverse.get(segment, segment) for segment in ours.split(".")]
    return ".".join(segments).replace(".downsample.", ".downsample.lowpass.")


def _vocoder_name(official: str) -> str:
    segments = [VOCODER_SEGMENTS.get(segment, segment) for segment in official.split(".")]
    return ".".join(segments).replace(".downsample.lowpass.", ".downsample.")


def _audio_vae_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    params = config["audio_vae"]["model"]["params"]
    preprocessing = config["audio_vae"].get("preprocessing", {}).get("stft", {})
    values = dict(params["ddconfig"])
    _expect(values, "downsample_time", False, "audio_vae", path)
    ours = _renamed(values, AUDIO_VAE_CONFIG_NAMES, "audio_vae", path)
    ours["attn_resolutions"] = tuple(ours.get("attn_resolutions") or ()) or None
    return {
        **ours,
        "sample_rate": params["sampling_rate"],
        "mel_hop_length": preprocessing.get("hop_length", 160),
        "is_causal": preprocessing.get("causal", True),
    }


def _vocoder_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    stages = config["vocoder"]
    ours: dict[str, Any] = {}
    for stage, prefix, extra in (("vocoder", "", {}), ("bwe", "bwe_", BWE_CONFIG_NAMES)):
        values = dict(stages[stage])
        _expect(values, "resblock", "AMP1", f"vocoder.{stage}", path)
        _expect(values, "use_tanh_at_final", False, f"vocoder.{stage}", path)
        _expect(values, "stereo", True, f"vocoder.{stage}", path)
        _expect(values, "apply_final_activation", stage == "vocoder", f"vocoder.{stage}", path)
        if "n_fft" in values:
            _expect(values, "win_size", values["n_fft"], f"vocoder.{stage}", path)
        own = {theirs: f"{prefix}{name}" for theirs, name in VOCODER_CONFIG_NAMES.items()}
        ours |= _renamed(values, own | extra, f"vocoder.{stage}", path)
        ours[f"{prefix}final_act_fn"] = None
    ours["window_length"] = ours["filter_length"]
    return ours


def _expect(values: dict[str, Any], key: str, expected: Any, part: str, path: Path) -> None:
    """Takes a key out that may have one value alone."""
    if values.pop(key, expected) != expected:
        raise ValueError(f"{path}: the config asks for another {part}.{key} than {expected!r}, which is not supported.")


def _renamed(values: Mapping[str, Any], names: Mapping[str, str], part: str, path: Path) -> dict[str, Any]:
    if unknown := [key for key in values if key not in names]:
        raise ValueError(f"{path}: the config of {part} asks for {', '.join(unknown)}, which is not supported.")
    return {names[key]: value for key, value in values.items()}


def _key_map(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((resources.files("nava_core") / "key_maps" / name).read_text(encoding="utf-8"))
    return content
