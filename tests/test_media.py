"""Clips and sounds written, measured and read back with the real ffmpeg; what goes wrong leaves nothing behind."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import soundfile
import torch
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nava_core import export
from nava_core.decode import decode_clip
from nava_core.ffmpeg import MediaError
from nava_core.media import (
    _METADATA_ESCAPE,
    _METADATA_LINE,
    _metadata_text,
    probe,
    read_audio,
    read_frames,
    read_image,
    read_recipe,
    write_audio,
    write_clip,
)
from nava_core.official import load_audio_parts, load_video_vae
from nava_core.request import GenerationRequest, ModelSpec

AUDIO_WEIGHTS = GOLDEN / "official_tiny/params/LTX2/ltx-2.3-22b-dev_audio_vae.safetensors"
VIDEO_WEIGHTS = GOLDEN / "official_tiny/Wan2.2-TI2V-5B/Wan2.2_VAE.pth"
HEIGHT, WIDTH = 48, 64
NASTY = {
    "prompt": '雨夜，两人对话 ~~你好~~ "quoted" ; # = == \\ \\\\ \\n \n\r\t\x00\x1f \u2028 \ufeff 😀 end\\',
    "comment=": "a=b;c#d\\",
    "lines": ["title=x\ncomment={}\n[STREAM]", ";FFMETADATA1"],
    "number": 1.5,
    "none": None,
}


def picture(count, height=HEIGHT, width=WIDTH):
    """A smooth picture that brightens with time, `(count, height, width, 3)` float in [0, 1]."""
    frames = np.zeros((count, height, width, 3), np.float32)
    frames[..., 0] = np.linspace(0.1, 0.9, width)
    frames[..., 1] = np.linspace(0.9, 0.2, height)[:, None]
    frames[..., 2] = np.linspace(0.0, 1.0, count)[:, None, None]
    return frames


def tone(samples, rate=48000):
    time = np.arange(samples) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * time), 0.25 * np.sin(2 * np.pi * 880 * time)]).astype(np.float32)


def ffmpeg_report(path):
    """What `ffmpeg -i` says of a file."""
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", path], capture_output=True, check=False
    )
    return done.stderr.decode()


def atoms(path):
    """The names of an mp4's top-level atoms, in order."""
    data, names, at = Path(path).read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    return names


def fake_ffmpeg(folder, monkeypatch, script):
    """Puts a program of our own in ffmpeg's place."""
    program = folder / "fake-ffmpeg"
    program.write_text(f"#!{sys.executable}\n{textwrap.dedent(script)}")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_clip_has_the_promised_form(tmp_path):
    path = write_clip(tmp_path / "new" / "夜 'a' %d.mp4", picture(25), 24, tone(60000), 48000, NASTY)
    report = ffmpeg_report(path)
    assert "Video: h264" in report and "yuv420p(tv, bt709" in report and "24 fps" in report
    assert "Audio: aac" in report and "48000 Hz, stereo" in report
    assert atoms(path).index("moov") < atoms(path).index("mdat")
    assert read_recipe(path) == NASTY
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    info = probe(path)
    assert (info.width, info.height, info.fps, info.num_frames) == (WIDTH, HEIGHT, 24, 25)
    assert (info.video_codec, info.audio_codec, info.channel_layout) == ("h264", "aac", "stereo")


@pytest.mark.parametrize(
    ("fps", "rate", "surplus"),
    [(24, 48000, 0), (24, 48000, 900), (24, 16000, -2000), (23.976, 48000, -9000), (60, 44100, 5)],
)
def test_sound_is_as_long_as_the_picture(tmp_path, fps, rate, surplus):
    frames = 17
    path = write_clip(tmp_path / "a.mp4", picture(frames), fps, tone(round(frames / fps * rate) + surplus), rate)
    info = probe(path)
    assert info.num_frames == frames
    assert info.video_seconds == pytest.approx(frames / fps, abs=1e-4)
    assert abs(info.video_seconds - info.audio_seconds) < 0.1 / fps
    heard, heard_rate = read_audio(path)
    assert heard_rate == 48000
    assert abs(len(heard) / heard_rate - info.video_seconds) < 0.1 / fps


def test_sound_starts_with_the_picture_and_keeps_its_sides(tmp_path):
    click = np.zeros((2, 48000), np.float32)
    click[0, 24000:24200] = 0.8
    heard, _ = read_audio(write_clip(tmp_path / "a.mp4", picture(24), 24, click))
    assert abs(int(np.abs(heard[:, 0]).argmax()) - 24100) < 200
    assert np.abs(heard[:, 1]).max() < 0.1


def test_frames_come_back_in_order_and_in_their_colours(tmp_path):
    frames = picture(12)
    path = write_clip(tmp_path / "a.mp4", frames, 24)
    seen = np.stack(list(read_frames(path)))
    assert seen.shape == frames.shape and seen.dtype == np.uint8
    difference = seen / 255 - frames
    assert 10 * np.log10(1 / np.mean(difference**2)) > 38
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.004
    assert [len(list(read_frames(path, fps))) for fps in (6, 12, 48)] == [3, 6, 24]
    assert probe(path).audio_seconds is None


def test_every_form_of_frames_gives_the_same_clip(tmp_path):
    frames = np.rint(picture(9) * 255).astype(np.uint8)
    exact = (frames / 255).astype(np.float32)
    forms = [
        frames,
        exact,
        torch.from_numpy(exact),
        [exact[:1], exact[1:5], torch.from_numpy(frames[5:])],
        iter([Image.fromarray(frame) for frame in frames]),
    ]
    written = {write_clip(tmp_path / f"{i}.mp4", form, 24).read_bytes() for i, form in enumerate(forms)}
    assert len(written) == 1


def test_frames_are_not_collected(tmp_path):
    alive, most = weakref.WeakSet(), 0

    class Piece(np.ndarray):
        __hash__ = object.__hash__

    def pieces():
        nonlocal most
        for _ in range(20):
            piece = picture(4).view(Piece)
            alive.add(piece)
            most = max(most, len({id(item.base) for item in alive}))
            yield piece

    write_clip(tmp_path / "a.mp4", pieces(), 24)
    assert most <= 3


def test_mono_is_heard_on_both_sides_at_its_level(tmp_path):
    sound = tone(48000)[0]
    heard, _ = read_audio(write_clip(tmp_path / "a.mp4", picture(24), 24, sound))
    assert np.allclose(heard[:, 0], heard[:, 1], atol=0.01)
    assert np.abs(heard[4000:40000, 0]).max() == pytest.approx(0.5, abs=0.05)


def test_too_loud_sound_is_clipped_not_turned_down_and_logged(tmp_path, caplog):
    loud = tone(4800) * 4
    with caplog.at_level(logging.WARNING):
        path = write_audio(tmp_path / "a.wav", loud, 48000)
    assert "exceed full scale (peak 2.00)" in caplog.text
    heard, rate = read_audio(path)
    assert rate == 48000 and heard.shape == (4800, 2)
    assert np.abs(heard.T - loud.clip(-1, 1)).max() < 1e-4


def test_wav_carries_its_recipe(tmp_path):
    recipe = NASTY | {"long": '长=;#\\"\n' * 4000}
    path = write_audio(tmp_path / "a.wav", tone(16000, 16000), 16000, recipe)
    assert read_recipe(path) == recipe
    assert soundfile.info(path).frames == 16000
    info = probe(path)
    assert (info.sampling_rate, info.audio_seconds, info.width) == (16000, 1.0, None)


texts = st.text(st.characters(), max_size=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
recipes = st.dictionaries(texts, values, max_size=8)


@given(recipes)
def test_recipe_survives_the_metadata_format(recipe):
    lines = _METADATA_LINE.findall(_metadata_text(recipe))
    assert [key for key, _ in lines] == ["comment"]
    assert json.loads(_METADATA_ESCAPE.sub(r"\1", lines[0][1])) == recipe


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(recipes, min_size=8, max_size=20))
def test_recipe_survives_the_file(tmp_path, parts):
    recipe = {"parts": parts, "nasty": NASTY, "padding": "字" * 2000}
    for path in (
        write_clip(tmp_path / "a.mp4", picture(1, 16, 16), 24, None, recipe=recipe),
        write_audio(tmp_path / "a.wav", np.zeros(160), 16000, recipe),
    ):
        assert read_recipe(path) == recipe


def test_files_without_a_recipe_say_so(tmp_path):
    with pytest.raises(ValueError, match="holds no recipe"):
        read_recipe(write_clip(tmp_path / "a.mp4", picture(1), 24))
    with pytest.raises(ValueError, match="There is no file at"):
        read_recipe(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(ValueError, match="cannot be read as a media file"):
        read_recipe(tmp_path / "text.mp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "no frames"),
        ({"frames": picture(2, 48, 63)}, "63x48 .* even"),
        ({"frames": [picture(1), picture(1, 32, 32)]}, "32x32 follows one of 64x48"),
        ({"frames": np.zeros((2, 48, 64, 4), np.uint8)}, r"shape \(48, 64, 4\)"),
        ({"frames": np.zeros((2, 48, 64, 3), np.int32)}, "int32"),
        ({"frames": np.full((2, 48, 64, 3), np.nan)}, "not finite"),
        ({"path": "clip.webm"}, r"clip\.webm should end in \.mp4"),
        ({"fps": 0}, "0 frames per second"),
        ({"audio": np.zeros((48000, 2))}, r"\(48000, 2\); pass \(channels, samples\)"),
        ({"audio": np.full((2, 10), np.inf)}, "not finite"),
        ({"recipe": {"x": float("nan")}}, "JSON compliant"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, change, message):
    arguments = {"path": "clip.mp4", "frames": picture(2), "fps": 24, "audio": None, "recipe": None} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        write_clip(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_error_among_the_frames_leaves_nothing_but_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def frames():
        yield picture(4)
        raise KeyError("decode failed")

    with pytest.raises(KeyError, match="decode failed"):
        write_clip(path, frames(), 24)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"] and path.read_bytes() == b"old"
    assert psutil.Process().children() == []


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for ffmpeg is a script")
@pytest.mark.parametrize("flood", [0, 300_000])
def test_failing_ffmpeg_is_reported_in_its_own_words(tmp_path, monkeypatch, flood):
    script = f"""
        import sys
        sys.stdin.buffer.read(1000)
        print("chatter " * {flood // 8}, file=sys.stderr)
        sys.exit("av_interleaved_write_frame(): No space left on device")
    """
    fake_ffmpeg(tmp_path, monkeypatch, script)
    out = tmp_path / "out"
    with pytest.raises(MediaError, match=r"failed with status 1: .*No space left on device"):
        write_clip(out / "a.mp4", (picture(4) for _ in range(50)), 24)
    assert list(out.iterdir()) == []
    assert psutil.Process().children() == []


def test_full_disk_is_reported_and_nothing_is_left(tmp_path):
    """A limit on file sizes stands for a full disk; noise in the picture makes the file pass it."""
    pytest.importorskip("resource")
    program = f"""
        import resource, numpy
        from nava_core.ffmpeg import MediaError
        from nava_core.media import write_clip
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        noise = numpy.random.default_rng(0).integers(0, 255, (12, 128, 128, 3), dtype=numpy.uint8)
        try:
            write_clip({str(tmp_path / "a.mp4")!r}, noise, 24)
        except MediaError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, text=True)
    assert done.stdout.startswith("ffmpeg ")
    assert list(tmp_path.iterdir()) == []


def test_missing_ffmpeg_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(MediaError, match="pip install imageio-ffmpeg"):
        write_clip(tmp_path / "a.mp4", picture(1), 24)


def test_unwritable_folder_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match=r"could not be written .* choose a folder"):
        write_clip(tmp_path / "file" / "a.mp4", picture(1), 24)
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(MediaError, match="could not be written"):
        write_clip(tmp_path / "a.mp4", picture(1), 24)


def test_read_audio_of_every_kind(tmp_path):
    sound = tone(8000, 16000).T
    for name in ("a.wav", "a.flac", "a.ogg"):
        soundfile.write(tmp_path / name, sound, 16000)
    write_clip(tmp_path / "a.mp4", picture(12), 24, sound.T, 16000)
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.wav", tmp_path / "a.m4a"], check=True
    )
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp4", "a.m4a"):
        heard, rate = read_audio(tmp_path / name)
        assert heard.dtype == np.float32 and heard.shape[1] == 2
        assert rate == (48000 if name == "a.mp4" else 16000)
        assert len(heard) / rate == pytest.approx(0.5, abs=0.07)
        assert np.abs(heard[1000:-1000]).max() == pytest.approx(0.5, abs=0.05)
    write_clip(tmp_path / "silent.mp4", picture(2), 24)
    (tmp_path / "text.wav").write_text("words")
    (tmp_path / "empty.wav").write_bytes(b"")
    for name in ("silent.mp4", "text.wav", "empty.wav"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a file with sound"):
            read_audio(tmp_path / name)
    with pytest.raises(ValueError, match="There is no file"):
        read_audio(tmp_path / "none.wav")


def test_read_image_of_every_kind(tmp_path):
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(tmp_path / "clear.png")
    image = read_image(tmp_path / "clear.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((1, 0)) == (255, 255, 255)

    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)

    Image.fromarray(np.full((2, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)

    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:500])
    (tmp_path / "text.png").write_text("words")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="There is no file"):
        read_image(tmp_path / "none.png")


def test_leaving_read_frames_early_ends_ffmpeg(tmp_path):
    path = write_clip(tmp_path / "a.mp4", picture(200), 24)
    frames = read_frames(path)
    next(frames)
    frames.close()
    assert psutil.Process().children() == []
    with pytest.raises(ValueError, match="has no picture"):
        read_frames(write_audio(tmp_path / "a.wav", tone(4800), 48000))


@pytest.fixture(scope="module")
def export_parts():
    """The parts of a pipeline that export uses, tiny; and a request."""
    torch.set_num_threads(1)
    audio_vae, vocoder = load_audio_parts(AUDIO_WEIGHTS, torch.float32)
    vae = load_video_vae(VIDEO_WEIGHTS, torch.float32)
    pipeline = SimpleNamespace(
        vae=vae, audio_vae=audio_vae, vocoder=vocoder, spec=ModelSpec("tiny"), decodes_alone=False
    )
    return pipeline, GenerationRequest("雨夜 ~~你好~~", num_frames=13).resolve(ModelSpec("tiny"))


def made(**parts):
    empty = dict.fromkeys(("frames", "audio", "sampling_rate", "latents", "audio_latents"))
    return SimpleNamespace(**(empty | {"seed": 7} | parts))


def test_save_output_writes_a_clip_with_its_recipe(tmp_path, export_parts):
    pipeline, request = export_parts
    output = made(latents=torch.zeros(48, 4, 3, 4), audio_latents=torch.zeros(14, 128))
    seen = []
    recipe = export.save_output(pipeline, output, request, tmp_path / "a.mp4", lambda *counts: seen.append(counts))
    assert seen == [(1, 13), (5, 13), (9, 13), (13, 13)]
    assert read_recipe(tmp_path / "a.mp4") == recipe
    assert GenerationRequest.from_recipe(recipe).prompt == request.prompt
    assert recipe["seed"] == 7 and recipe["model"] == "tiny"
    assert recipe["sampling_rate"] == 48000 and recipe["versions"]["torch"] == torch.__version__ and recipe["created"]
    info = probe(tmp_path / "a.mp4")
    assert info.num_frames == 13 and info.audio_seconds == pytest.approx(info.video_seconds, abs=1e-3)
    assert export.output_suffix(output) == ".mp4"


def test_save_output_of_sound_alone_of_decoded_parts_and_of_nothing(tmp_path, export_parts):
    pipeline, request = export_parts
    sound = made(audio_latents=torch.zeros(14, 128))
    assert export.output_suffix(sound) == ".wav"
    recipe = export.save_output(pipeline, sound, request, tmp_path / "a.wav")
    assert read_recipe(tmp_path / "a.wav") == recipe
    assert probe(tmp_path / "a.wav").audio_seconds == pytest.approx((4 * 14 - 3) * 0.01)

    decoded = made(frames=torch.from_numpy(picture(5)), audio=tone(10000, 16000), sampling_rate=16000)
    assert export.save_output(pipeline, decoded, request, tmp_path / "a.mp4")["sampling_rate"] == 16000
    assert probe(tmp_path / "a.mp4").num_frames == 5
    with pytest.raises(ValueError, match="nothing to save"):
        export.save_output(pipeline, made(), request, tmp_path / "b.mp4")
    with pytest.raises(ValueError, match=r"should end in \.wav"):
        export.save_output(pipeline, sound, request, tmp_path / "b.mp4")
    pipeline = SimpleNamespace(**(vars(pipeline) | {"vae": None}))
    with pytest.raises(ValueError, match="without its vae"):
        export.save_output(pipeline, made(latents=torch.zeros(48, 2, 3, 4)), request, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_ending_an_export_from_its_progress_leaves_nothing(tmp_path, export_parts):
    pipeline, request = export_parts

    def stop(written, total):
        raise InterruptedError(f"{written} of {total}")

    with pytest.raises(InterruptedError, match="1 of 13"):
        export.save_output(pipeline, made(latents=torch.zeros(48, 4, 3, 4)), request, tmp_path / "a.mp4", stop)
    assert list(tmp_path.iterdir()) == [] and psutil.Process().children() == []


def test_preview_is_the_middle_latent_frame(export_parts):
    pipeline, _ = export_parts
    latents = torch.randn(48, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    image = export.preview_image(pipeline.vae, latents)
    middle = decode_clip(pipeline.vae, latents[:, 2:3])[0]
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert np.abs(image / 255 - middle.numpy()).max() < 0.0021
