from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from nava_core.conditioning import text as text_module
from nava_core.conditioning.image import load_first_frame
from nava_core.conditioning.speaker import REFERENCE_RATE, embed_speakers, load_reference
from nava_core.conditioning.text import clean_text, count_tokens, encode_prompt
from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from nava_core.official import load_text_encoder
from nava_core.request import RequestError
from nava_core.speech import SENTINEL, parse_speech

BUNDLE = Path(__file__).parent / "golden" / "official_tiny"


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(BUNDLE / "expected.safetensors")


@pytest.fixture(scope="module")
def end_to_end() -> dict[str, Any]:
    return json.loads((BUNDLE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    path = BUNDLE / "Wan2.2-TI2V-5B" / "google" / "umt5-xxl" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>")


class EchoEncoder(nn.Module):
    """States that say which ids came in, so that tests about ids need no weights."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert attention_mask.all()
        return type("Output", (), {"last_hidden_state": input_ids[..., None].float()})


# ---- text ----


@pytest.mark.parametrize("key", ["prompt", "prompt_as_typed"])
def test_golden_ids_and_positions(
    tokenizer: PreTrainedTokenizerFast,
    expected: dict[str, torch.Tensor],
    end_to_end: dict[str, Any],
    key: str,
) -> None:
    conditioning = encode_prompt(tokenizer, EchoEncoder(), end_to_end[key], 512)
    assert torch.equal(conditioning.ids, expected["text.ids"])
    assert conditioning.speaker_positions == tuple(expected["text.speaker_positions"].tolist())
    assert conditioning.embeds.shape == (len(expected["text.ids"]), 1)


def test_tilde_marks_give_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, expected: dict[str, torch.Tensor], end_to_end: dict[str, Any]
) -> None:
    typed = end_to_end["prompt_as_typed"].replace("<S>", "~~").replace("<E>", "~~")
    assert torch.equal(encode_prompt(tokenizer, EchoEncoder(), typed, 512).ids, expected["text.ids"])


def test_golden_text_states(
    tokenizer: PreTrainedTokenizerFast, expected: dict[str, torch.Tensor], end_to_end: dict[str, Any]
) -> None:
    text_encoder = load_text_encoder(BUNDLE / "Wan2.2-TI2V-5B" / "models_t5_umt5-xxl-enc-bf16.pth", torch.float32)
    embeds = encode_prompt(tokenizer, text_encoder, end_to_end["prompt_as_typed"], 512).embeds
    golden = expected["text.embeds"]
    assert embeds.shape == golden.shape
    assert (embeds.float() - golden).abs().max() < 1e-4 * golden.abs().max()


def test_only_our_own_sentinels_are_speaker_positions(tokenizer: PreTrainedTokenizerFast) -> None:
    sentinel_id = tokenizer.convert_tokens_to_ids(SENTINEL)
    for prompt in (
        f"{SENTINEL} one ~~Hello there~~ {SENTINEL}",
        "&lt;extra_id_2&gt; one ~~Hello there~~",
        "＜extra_id_2＞ one ~~Hello there~~",
        f"one ~~Hello {SENTINEL} there~~",
    ):
        conditioning = encode_prompt(tokenizer, EchoEncoder(), prompt, 512)
        (position,) = conditioning.speaker_positions
        ids = conditioning.ids.tolist()
        assert ids.count(sentinel_id) > 1
        opening = tokenizer("<S>", add_special_tokens=False)["input_ids"]
        assert ids[position] == sentinel_id
        assert ids[position - 2 : position] == opening[-2:]


def test_an_official_prompt_keeps_one_sentinel(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = encode_prompt(tokenizer, EchoEncoder(), "one <S>Hello<E>", 512)
    official = encode_prompt(tokenizer, EchoEncoder(), f"one <S>{SENTINEL}Hello<E>", 512)
    assert torch.equal(plain.ids, official.ids)


@pytest.mark.parametrize(
    ("given_text", "cleaned"),
    [("  a\n\tb ", "a b"), ("你好，世界", "你好,世界"), ("“quoted”", '"quoted"'), ("a &amp;amp; b", "a & b")],
)
def test_cleaning(given_text: str, cleaned: str) -> None:
    assert clean_text(given_text) == cleaned


PIECES = [
    "~~",
    "<S>",
    "<E>",
    SENTINEL,
    "\n",
    " ",
    "Hello",
    "你好，",
    "&lt;",
    "&amp;lt;S&gt;",
    "＜S＞",
    "\x00",
    "\x1b[3",
    "Ã©",
]


@settings(max_examples=200)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
@example("nava0 <nava0S> &lt;nava1E&gt; ~~a~~")
@example("&~~lt;~~")
def test_marks_are_found_after_cleaning(text: str) -> None:
    speech = parse_speech(text)
    try:
        cleaned, sentinels, ends = text_module._clean_prompt(speech)
    except RequestError:
        # A combining character after a mark: plain cleaning would have lost a mark.
        assert "\u226f" in clean_text(speech.model_text)
        return
    assert cleaned == clean_text(speech.model_text)
    assert len(sentinels) == len(ends) == len(speech.spans)
    assert all(cleaned[: start + len(SENTINEL)].endswith("<S>" + SENTINEL) for start in sentinels)
    assert all(cleaned[:end].endswith("<E>") for end in ends)
    assert all(start < end for start, end in zip(sentinels, ends, strict=True))


@pytest.mark.parametrize("prompt", ["~~\u0338Hello~~", "~~Hello~~\u0338 end"])
def test_a_mark_that_cleaning_would_destroy_is_an_error(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    with pytest.raises(RequestError, match=r"speech span 1.*combining.*Delete") as failure:
        count_tokens(tokenizer, prompt, 512)
    assert failure.value.field == "prompt"


def test_a_mark_that_cleaning_makes_is_told(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encode_prompt(tokenizer, EchoEncoder(), "&lt;S&gt;Hello&lt;E&gt;", 512)
    assert "<S>, <E>" in caplog.text
    caplog.clear()
    encode_prompt(tokenizer, EchoEncoder(), "one ~~Hello~~", 512)
    assert not caplog.text


def test_token_count_and_cut(tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "one ~~Hello~~ and so on and so on"
    whole = encode_prompt(tokenizer, EchoEncoder(), prompt, 512)
    used = len(whole.ids)
    assert (whole.token_count.used, whole.token_count.cut, whole.token_count.spans_cut) == (used, 0, ())
    assert count_tokens(tokenizer, prompt, used).cut == 0
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        shorter = encode_prompt(tokenizer, EchoEncoder(), prompt, used - 3)
    assert shorter.token_count.cut == 3
    assert shorter.ids.tolist() == [*whole.ids[: used - 4].tolist(), whole.ids[-1].item()]
    assert f"needs {used} tokens" in caplog.text


def test_cutting_a_span_is_an_error_at_the_exact_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "one ~~Hello~~ two ~~there~~ three"
    tail = len(tokenizer("three", add_special_tokens=False)["input_ids"])
    used = count_tokens(tokenizer, prompt, 512).used
    fits = used - tail
    assert count_tokens(tokenizer, prompt, fits).spans_cut == ()
    assert len(encode_prompt(tokenizer, EchoEncoder(), prompt, fits).ids) == fits
    assert count_tokens(tokenizer, prompt, fits - 1).spans_cut == (1,)
    with pytest.raises(RequestError, match=rf"needs {used} tokens.*reads {fits - 1}: speech span 2 \(“there”\) would"):
        encode_prompt(tokenizer, EchoEncoder(), prompt, fits - 1)
    assert count_tokens(tokenizer, prompt, 4).spans_cut == (0, 1)


def test_a_tokenizer_without_the_sentinel_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != SENTINEL]
    other = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(data)))
    with pytest.raises(ValueError, match=r"<extra_id_2> as one token"):
        count_tokens(other, "~~Hello~~", 512)


# ---- voices ----


def voice(seconds: float, rate: int = REFERENCE_RATE, channels: int = 1, level: float = 0.2) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    tone = level * np.sin(2 * math.pi * 220.0 * time)
    return np.stack([tone * (1 + channel) for channel in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1)])
def test_any_rate_and_channels(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path = tmp_path / f"voice.{suffix}"
    soundfile.write(path, voice(1.5, rate, channels), rate)
    waveform = load_reference(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (24000,) or (suffix == "mp3" and abs(len(waveform) - 24000) < 4000)
    middle = waveform[6000:18000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(spectrum.argmax() * REFERENCE_RATE / len(middle) - 220) < 2
    expected_level = 0.2 / math.sqrt(2) * (1 if channels == 1 else 1.5)
    assert abs(middle.std() / expected_level - 1) < 0.05


def test_same_rate_mono_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    samples = voice(1.2)[:, 0]
    soundfile.write(path, samples, REFERENCE_RATE, subtype="FLOAT")
    assert np.array_equal(load_reference(str(path)), samples)
    assert np.array_equal(load_reference((samples, REFERENCE_RATE)), samples)
    assert np.array_equal(load_reference((torch.from_numpy(samples), REFERENCE_RATE)), samples)


def test_stereo_is_averaged_and_only_30_seconds_are_used(tmp_path: Path) -> None:
    stereo = voice(31.0, 8000, 2)
    stereo[30 * 8000 :] = 9.0
    path = tmp_path / "long.wav"
    soundfile.write(path, stereo, 8000, subtype="FLOAT")
    waveform = load_reference(path)
    assert waveform.shape == (480000,)
    assert np.abs(waveform).max() < 0.35
    ones = np.stack([np.ones(16000), -np.ones(16000)], axis=1) * voice(1.0)
    assert np.array_equal(load_reference((np.concatenate([ones, stereo[:16000]]), 16000))[:16000], np.zeros(16000))


def test_integers_are_scaled() -> None:
    floats = voice(1.0)[:, 0]
    for dtype, scale, offset in ((np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 2**7)):
        integers = np.clip(np.rint(floats * float(scale)) + offset, None, np.iinfo(dtype).max).astype(dtype)
        np.testing.assert_allclose(load_reference((integers, 16000)), floats, atol=0.6 / scale)


def write(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def test_bad_references_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "headless.raw").write_bytes(bytes(64_000))
    nan = voice(1.5)
    nan[5] = np.nan
    cases: list[tuple[Any, str]] = [
        (write(tmp_path / "short.wav", voice(0.99)), r"short\.wav is 0\.99 s long.*at least 1 s.*longer recording"),
        (write(tmp_path / "silent.wav", voice(2) * 0), r"silent\.wav is silent: .*-200 dBFS.*-60 dBFS.*louder"),
        (write(tmp_path / "faint.wav", voice(2, level=1e-3)), r"faint\.wav is silent: its level is -63 dBFS"),
        (write(tmp_path / "offset.wav", voice(2) * 0 + 0.5), r"offset\.wav is silent"),
        (tmp_path / "notes.wav", r"notes\.wav cannot be read as sound.*convert it to WAV"),
        (tmp_path / "empty.wav", r"empty\.wav cannot be read as sound"),
        (tmp_path / "headless.raw", r"headless\.raw cannot be read as sound"),
        (tmp_path / "absent.wav", r"absent\.wav does not exist"),
        (tmp_path, r"does not exist"),
        (write(tmp_path / "nan.wav", nan), r"nan\.wav holds numbers that are not finite"),
        ((voice(0.5), 16000), r"given in memory is 0\.50 s long"),
        ((16000, voice(2)), r"this is \(int, ndarray\)"),
        ((np.zeros((2, 16000)), 16000), r"shape \(2, 16000\)"),
        ((np.array(["a"]), 16000), r"give numbers"),
    ]
    for reference, message in cases:
        with pytest.raises(RequestError, match=message) as failure:
            load_reference(reference)
        assert failure.value.field == "speakers"


class CountingEncoder(nn.Module):
    """Says how long its input was, and counts how often it was asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.full((1, 192), float(waveform.shape[1]))


def test_embeddings_keep_their_places(tmp_path: Path) -> None:
    path = write(tmp_path / "voice.wav", voice(1.5))
    encoder = CountingEncoder()
    given = torch.arange(192.0)
    rows = embed_speakers(encoder, [None, path, given, str(path), given.numpy()[None], (voice(2.0), 16000)])
    assert rows.shape == (6, 192)
    assert rows.dtype == torch.float32
    assert rows[0].abs().max() == 0
    assert (rows[1] == 24000).all()
    assert torch.equal(rows[2], given)
    assert torch.equal(rows[4], given)
    assert torch.equal(rows[1], rows[3])
    assert (rows[5] == 32000).all()
    assert encoder.calls == 2
    bare = [voice(2.0), torch.from_numpy(voice(2.0)[:, 0]).expand(2, -1)]
    assert (embed_speakers(encoder, bare) == 32000).all()
    assert embed_speakers(None, []).shape == (0, 192)
    assert torch.equal(embed_speakers(None, [given])[0], given)


def test_embedding_errors(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ReDimNet-M"):
        embed_speakers(None, [write(tmp_path / "voice.wav", voice(1.5))])
    with pytest.raises(RequestError, match=r"0\.00 s long"):
        embed_speakers(None, [torch.zeros(3)])
    with pytest.raises(RequestError, match="not finite"):
        embed_speakers(None, [torch.full((192,), math.nan)])


@pytest.mark.parametrize(
    ("release", "key"), [("redimnet_tiny.pt", "speaker.embedding"), ("redimnet_tiny_b.pt", "speaker.embedding_b")]
)
def test_golden_embedding(expected: dict[str, torch.Tensor], release: str, key: str) -> None:
    encoder = ReDimNetSpeakerEncoder.from_official(BUNDLE / release)
    row = embed_speakers(encoder, [(expected["speaker.waveform"][0], REFERENCE_RATE)])
    assert (row - expected[key]).abs().max() < 1e-5 * expected[key].abs().max()


# ---- the first frame ----


def test_cover_and_centre_crop() -> None:
    array = np.zeros((100, 300, 3), dtype=np.uint8)
    array[:, 100:200] = (255, 0, 0)  # the middle third is red
    frame = load_first_frame(Image.fromarray(array), 64, 64)
    assert frame.shape == (3, 1, 64, 64)
    assert frame.dtype == torch.float32
    assert (frame[0, :, :, 3:-3] > 0.99).all()  # Lanczos reaches three pixels over the edge
    assert (frame[1:] == -1.0).all()
    tall = load_first_frame(array.transpose(1, 0, 2), 64, 32)
    assert (tall[0, :, :, :] > 0.99).all()


def test_a_picture_of_the_clips_size_is_untouched(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "frame.png")
    exact = torch.from_numpy(array).permute(2, 0, 1)[:, None].float() / 127.5 - 1.0
    assert torch.equal(load_first_frame(tmp_path / "frame.png", 64, 32), exact)
    assert torch.equal(load_first_frame(array, 64, 32), exact)
    assert torch.equal(load_first_frame(array.astype(np.float32) / 255, 64, 32), exact)


def test_exif_orientation(tmp_path: Path) -> None:
    array = np.zeros((32, 64, 3), dtype=np.uint8)
    array[:, :32] = 255  # left half white; turned by 90 degrees clockwise it is the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    frame = load_first_frame(tmp_path / "turned.png", 32, 64)
    assert (frame[:, :, :32] == 1.0).all()
    assert (frame[:, :, 32:] == -1.0).all()
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(load_first_frame(opened, 32, 64), frame)


def test_other_pixel_formats(tmp_path: Path) -> None:
    rgba = np.full((32, 32, 4), 255, dtype=np.uint8)
    rgba[:16, :, 3] = 0
    frame = load_first_frame(rgba, 32, 32)
    assert (frame[:, :, :16] == -1.0).all()
    assert (frame[:, :, 16:] == 1.0).all()
    Image.fromarray(rgba).convert("P").save(tmp_path / "palette.gif", transparency=0)
    assert load_first_frame(tmp_path / "palette.gif", 32, 32).shape == (3, 1, 32, 32)
    deep = Image.fromarray(np.full((32, 32), 32896, dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert torch.allclose(load_first_frame(tmp_path / "deep.png", 32, 32), torch.tensor(128 / 127.5 - 1.0), atol=1e-6)
    for mode in ("L", "1", "CMYK", "LA", "YCbCr"):
        assert load_first_frame(Image.new(mode, (40, 50)), 32, 32).shape == (3, 1, 32, 32)
    assert load_first_frame(np.zeros((9, 9), dtype=np.uint8), 32, 64).shape == (3, 1, 64, 32)
    assert load_first_frame(np.zeros((9, 9, 1)), 32, 64).shape == (3, 1, 64, 32)


def test_bad_images_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image at all")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    cases: list[tuple[Any, str]] = [
        (tmp_path / "notes.png", r"notes\.png cannot be read as an image.*PNG or JPEG"),
        (tmp_path / "torn.png", r"torn\.png cannot be read"),
        (tmp_path / "absent.png", r"absent\.png does not exist"),
        (np.zeros((4, 4, 7), dtype=np.uint8), r"shape \(4, 4, 7\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), 255.0), r"runs from 255 to 255"),
        (np.full((4, 4, 3), np.nan), r"runs from nan"),
        (np.zeros((4, 4, 3), dtype=np.int32), r"type int32"),
        (Image.new("F", (4, 4)), r"floating-point"),
        (Image.new("I", (4, 4), 70000), r"70000"),
        (3, r"is a int"),
    ]
    for image, message in cases:
        with pytest.raises(RequestError, match=message) as failure:
            load_first_frame(image, 32, 32)
        assert failure.value.field == "image"
