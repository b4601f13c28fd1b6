"""ReDimNet against the golden tensors; what its loading and its forward refuse."""

from __future__ import annotations

import pytest
import torch
from official_bundle import OFFICIAL
from safetensors.torch import load_file

from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder, config_from_official
from nava_core.models.speaker_encoder_blocks import BLOCK_1D_TYPES, BLOCK_2D_TYPES

RELEASES = {"redimnet_tiny.pt": "speaker.embedding", "redimnet_tiny_b.pt": "speaker.embedding_b"}
SMALL = {
    "num_mel_bins": 12,
    "channels": 4,
    "stages": ((1, 1, 2, ((3, 3),), 4), (2, 1, 1, ((3, 3), (5, 5)), None)),
    "group_divisor": 2,
    "embedding_dim": 8,
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(OFFICIAL / "expected.safetensors")


def release(name: str) -> dict:
    return torch.load(OFFICIAL / name, weights_only=True)


@pytest.mark.parametrize(("name", "key"), RELEASES.items())
@torch.no_grad()
def test_releases_reproduce_the_golden_embeddings(name, key, expected):
    encoder = ReDimNetSpeakerEncoder.from_official(OFFICIAL / name)
    embedding = encoder(expected["speaker.waveform"])
    assert encoder.embedding_dim == 192
    assert encoder.sampling_rate == 16000
    assert not encoder.training
    assert (embedding - expected[key]).abs().max() <= 1e-5 * expected[key].abs().max()


@torch.no_grad()
def test_a_batch_embeds_each_waveform_alone(expected):
    encoder = ReDimNetSpeakerEncoder.from_official(OFFICIAL / "redimnet_tiny_b.pt")
    waveform = expected["speaker.waveform"]
    both = encoder(torch.cat([waveform, 0.1 * waveform.flip(1)]))
    torch.testing.assert_close(both[:1], expected["speaker.embedding_b"], rtol=0, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@torch.no_grad()
def test_saved_and_loaded_again_it_is_the_same(tmp_path, expected):
    encoder = ReDimNetSpeakerEncoder.from_official(release("redimnet_tiny_b.pt"))
    encoder.save_pretrained(tmp_path)
    again = ReDimNetSpeakerEncoder.from_pretrained(tmp_path)
    waveform = expected["speaker.waveform"]
    torch.testing.assert_close(again(waveform), encoder(waveform), rtol=0, atol=1e-6)


@torch.no_grad()
def test_bfloat16_stays_near_float32_because_its_front_end_is_not_rounded(expected):
    encoder = ReDimNetSpeakerEncoder.from_official(OFFICIAL / "redimnet_tiny.pt", dtype=torch.bfloat16)
    embedding = encoder(expected["speaker.waveform"])
    assert embedding.dtype == torch.bfloat16
    reference = expected["speaker.embedding"]
    assert (embedding - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("block_1d_type", BLOCK_1D_TYPES)
@pytest.mark.parametrize("block_2d_type", BLOCK_2D_TYPES)
@torch.no_grad()
def test_every_block_type_runs(block_1d_type, block_2d_type):
    encoder = ReDimNetSpeakerEncoder(block_1d_type=block_1d_type, block_2d_type=block_2d_type, **SMALL).eval()
    assert encoder(torch.randn(2, 4000)).shape == (2, 8)


@torch.no_grad()
def test_blocks_without_groups_run():
    encoder = ReDimNetSpeakerEncoder(block_2d_type="basic_resnet", **SMALL | {"group_divisor": None}).eval()
    assert encoder(torch.randn(1, 4000)).shape == (1, 8)


def test_the_default_is_the_m_model():
    with torch.device("meta"):
        encoder = ReDimNetSpeakerEncoder()
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes["backbone.fin_wght1d.w"] == (1, 7, 72 * 16, 1)
    assert shapes["backbone.stage5.0.w"] == (1, 6, 72 * 16, 1)
    assert shapes["backbone.stage1.2.weight"] == (32, 16, 2, 1)
    assert shapes["backbone.stage5.8.red_dim_conv.0.weight"] == (72 * 16 // 4, 72 * 16, 1)
    assert shapes["pool.linear1.weight"] == (128, 72 * 16, 1)
    assert shapes["linear.weight"] == (192, 2 * 72 * 16)


@pytest.mark.parametrize("block", ["block_1d_type", "block_2d_type"])
def test_an_unknown_block_type_is_refused_by_name(block):
    with pytest.raises(ValueError, match=f"{block} 'gru'"):
        ReDimNetSpeakerEncoder(**SMALL | {block: "gru"})


def test_a_stride_that_does_not_divide_the_frequencies_is_refused():
    with pytest.raises(ValueError, match="stride 5"):
        ReDimNetSpeakerEncoder(**SMALL | {"stages": ((5, 1, 1, ((3, 3),), None),)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling_func": "TSTP"}, "pooling_func = 'TSTP'"),
        ({"feat_type": "tf"}, "feat_type = 'tf'"),
        ({"surprise": 1}, "surprise = 1"),
        ({"spec_params": {"n_fft": 1024}}, "n_fft = 1024"),
        ({"spec_params": {"do_spec_aug": True, "mystery": 1}}, "mystery = 1"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_its_key(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_official(release("redimnet_tiny.pt")["model_config"] | change)


def test_what_acts_in_training_alone_is_passed_over(expected):
    content = release("redimnet_tiny.pt")
    content["model_config"] |= {"num_classes": 3, "feat_agg_dropout": 0.1, "spec_params": {"freq_mask_width": (0, 6)}}
    content["state_dict"]["cls_head.2.weight"] = torch.zeros(3, 192)
    with torch.no_grad():
        embedding = ReDimNetSpeakerEncoder.from_official(content)(expected["speaker.waveform"])
    torch.testing.assert_close(embedding, expected["speaker.embedding"], rtol=0, atol=1e-5)


def test_tensors_that_do_not_fit_are_named():
    content = release("redimnet_tiny.pt")
    del content["state_dict"]["pool.linear1.bias"]
    content["state_dict"]["pool.linear3.bias"] = torch.zeros(1)
    content["state_dict"]["linear.bias"] = torch.zeros(7)
    with pytest.raises(ValueError) as error:
        ReDimNetSpeakerEncoder.from_official(content)
    for part in ("missing: pool.linear1.bias", "surplus: pool.linear3.bias", "linear.bias is (7,)"):
        assert part in str(error.value)


def test_a_file_that_is_no_release_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "voice.pt")
    with pytest.raises(ValueError, match=r"voice\.pt is no ReDimNet release"):
        ReDimNetSpeakerEncoder.from_official(tmp_path / "voice.pt")


@pytest.mark.parametrize("shape", [(16000,), (1, 1, 16000), (1, 511)])
def test_waveforms_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="at least 512 samples"):
        ReDimNetSpeakerEncoder(**SMALL)(torch.zeros(shape))
