"""Latents to frames and sound: the golden tensors, and the library's own decode as the measure of the streamed one."""

from __future__ import annotations

import copy
import threading
import weakref

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nava_core.decode import (
    clip_length,
    decode_audio,
    decode_clip,
    decode_mel,
    decode_video,
    encode_audio,
    encode_video,
    sampling_rate,
)
from nava_core.official import load_audio_parts, load_video_vae

BUNDLE = GOLDEN / "official_tiny"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected():
    return load_file(BUNDLE / "expected.safetensors")


@pytest.fixture(scope="module")
def loaded_vae():
    return load_video_vae(BUNDLE / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth", torch.float32)


@pytest.fixture
def vae(loaded_vae):
    return copy.deepcopy(loaded_vae)


@pytest.fixture(scope="module")
def audio_parts():
    return load_audio_parts(BUNDLE / "params/LTX2/ltx-2.3-22b-dev_audio_vae.safetensors", torch.float32)


def error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def library_decode(vae, latents):
    """What AutoencoderKLWan.decode makes of normalised latents, in the shape and range of `decode_video`."""
    mean, std = (torch.tensor(vae.config[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        decoded = vae.decode((latents * std + mean).to(vae.dtype)[None]).sample[0]
    return decoded.float().permute(1, 2, 3, 0) * 0.5 + 0.5


def latents_of(frames, height=3, width=4, seed=0):
    return torch.randn(48, frames, height, width, generator=torch.Generator().manual_seed(seed))


def test_video_against_golden(vae, expected):
    assert error(encode_video(vae, expected["video.pixels"]), expected["video.latents"]) < 1e-5
    first = encode_video(vae, expected["video.pixels"][:, :1])
    assert error(first, expected["video.first_frame_latents"]) < 1e-5
    decoded = decode_clip(vae, expected["video.latents"])
    assert decoded.dtype == torch.float32
    assert error(decoded.permute(3, 0, 1, 2) * 2 - 1, expected["video.decoded"]) < 1e-5
    chained = decode_clip(vae, expected["e2e.video_latents"])
    assert error(chained.permute(3, 0, 1, 2) * 2 - 1, expected["e2e.frames"]) < 1e-4


def test_audio_against_golden(audio_parts, expected):
    audio_vae, vocoder = audio_parts
    assert error(encode_audio(audio_vae, expected["audio.mel"]), expected["audio.latents"]) < 1e-5
    assert error(decode_mel(audio_vae, expected["audio.latents"]), expected["audio.decoded_mel"]) < 1e-5
    waveform = decode_audio(audio_vae, vocoder, expected["audio.latents"])
    assert error(waveform, expected["audio.decoded_waveform"]) < 1e-5
    assert error(decode_audio(audio_vae, vocoder, expected["e2e.audio_latents"]), expected["e2e.waveform"]) < 1e-4
    assert waveform.shape == (2, (4 * len(expected["audio.latents"]) - 3) * 480)
    assert sampling_rate(vocoder) == 48000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_streamed_decode_equals_the_librarys_bit_for_bit(vae, dtype, frames):
    vae.to(dtype)
    latents = latents_of(frames)
    pieces = list(decode_video(vae, latents))
    assert [len(piece) for piece in pieces] == [1] + [4] * (frames - 1)
    assert all(piece.dtype == torch.float32 and piece.is_contiguous() for piece in pieces)
    assert torch.equal(torch.cat(pieces), library_decode(vae, latents))
    assert clip_length(vae, latents) == sum(map(len, pieces))


@pytest.mark.parametrize("tiles", [(32, 48, 24, 32), (64, 32, 48, 32), (48, 48, 48, 48)])
def test_tiled_decode_equals_the_librarys_bit_for_bit(vae, tiles):
    vae.enable_tiling(*tiles)
    latents = latents_of(3, 5, 7)
    assert torch.equal(decode_clip(vae, latents), library_decode(vae, latents))


def test_decode_takes_any_precision_and_keeps_gradients_out(vae):
    latents = latents_of(2).requires_grad_()
    pieces = decode_video(vae, latents)
    first = next(pieces)
    assert torch.is_grad_enabled()  # a suspended decode does not change its consumer's mode
    assert not first.requires_grad
    half = decode_clip(vae, latents.detach().double())
    assert torch.equal(half[:1], first)
    assert decode_clip(vae, latents.detach().bfloat16()).dtype == torch.float32


def test_interleaved_and_abandoned_decodes_do_not_disturb_each_other(vae):
    ours, other = latents_of(3, seed=1), latents_of(3, 2, 5, seed=2)
    expected, expected_other = library_decode(vae, ours), library_decode(vae, other)
    abandoned = decode_video(vae, other)
    next(abandoned)
    zipped = list(zip(decode_video(vae, ours), decode_video(vae, other), strict=True))
    abandoned.close()
    assert torch.equal(torch.cat([piece for piece, _ in zipped]), expected)
    assert torch.equal(torch.cat([piece for _, piece in zipped]), expected_other)

    results = {}
    threads = [
        threading.Thread(target=lambda name=name, z=z: results.update({name: decode_clip(vae, z)}))
        for name, z in (("ours", ours), ("other", other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results["ours"], expected) and torch.equal(results["other"], expected_other)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self.alive)
        return out

    def _freed(self, key):
        self.alive -= self.sizes.pop(key)


def test_peak_memory_does_not_grow_with_the_clip(vae):
    def peak(frames):
        latents = latents_of(frames)
        with PeakMemory() as memory:
            for _ in decode_video(vae, latents):
                pass
        return memory

    short, long = peak(4), peak(24)
    assert short.peak > 100_000
    assert long.peak <= 1.1 * short.peak
    assert long.alive < short.peak / 10  # nothing stays behind


def test_model_offload_hook_is_called(vae):
    class Hook:
        calls = 0

        def pre_forward(self, module):
            Hook.calls += 1

    vae._hf_hook = Hook()
    next(decode_video(vae, latents_of(1)))
    assert Hook.calls == 1


@pytest.mark.parametrize("shape", [(48, 3, 4), (16, 2, 3, 4), (48, 0, 3, 4), (1, 48, 2, 3, 4)])
def test_wrong_latents_are_refused_at_once(vae, shape):
    with pytest.raises(ValueError, match=r"latents have the shape .* pass \(48"):
        decode_video(vae, torch.zeros(shape))


def test_wrong_pixels_are_refused(vae):
    with pytest.raises(ValueError, match=r"7 frames .* e\.g\. 5"):
        encode_video(vae, torch.zeros(3, 7, 32, 32))
    with pytest.raises(ValueError, match=r"30x32 .* divisible by 16"):
        encode_video(vae, torch.zeros(3, 5, 32, 30))
    with pytest.raises(ValueError, match="shape"):
        encode_video(vae, torch.zeros(1, 3, 5, 32, 32))


def test_wrong_audio_is_refused(audio_parts):
    audio_vae, _ = audio_parts
    with pytest.raises(ValueError, match=r"64 channels .* 128"):
        decode_mel(audio_vae, torch.zeros(5, 64))
    with pytest.raises(ValueError, match="shape"):
        decode_mel(audio_vae, torch.zeros(1, 5, 128))
    with pytest.raises(ValueError, match="shape"):
        encode_audio(audio_vae, torch.zeros(101, 64))
