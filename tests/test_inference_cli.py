from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inference_nava
import nava_core
from nava_core.batch import BadLine, BatchLine, clip_seed, output_name, read_batch
from nava_core.media import read_recipe
from nava_core.request import Guidance

ROOT = Path(__file__).parents[1]
BUNDLE = Path(__file__).parent / "golden" / "official_tiny"
TINY = ["--width", "96", "--height", "64", "--frames", "2", "--steps", "2"]


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def write_voice(path: Path, level: float = 0.2) -> Path:
    soundfile.write(path, level * np.sin(np.arange(24000) * 0.1), 16000)
    return path


# ---- reading ----


def test_mixed_lines_and_paths_relative_to_the_file_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    voice, other = write_voice(folder / "voice.wav"), write_voice(elsewhere / "other.wav")
    Image.new("RGB", (64, 64)).save(elsewhere / "frame.png")
    Image.new("RGB", (64, 64)).save(folder / "frame.png")
    monkeypatch.chdir(elsewhere)
    path = write_lines(
        folder / "lines.jsonl",
        {"prompt": "A street."},
        "",
        {"text": "~~Hi~~ ~~Bye~~ ~~So~~", "spk_wavs": ["voice.wav", None, "other.wav"], "image_path": "frame.png"},
        {"prompt": "~~Hi~~ ~~Bye~~", "text": "not this", "spk_wavs": ["None", ""], "image_path": None},
        {"prompt": "~~Hi~~", "spk_wavs": [str(other)], "original_prompt": "x", "spk_wav": 1},
        {"prompt": "~~Hello~~Hi there", "spk_wavs": ["voice.wav", "voice.wav"]},
    )
    first, mixed, empty, absolute, published = read_batch(path)
    assert first == BatchLine(0, "A street.", "A street.")
    assert isinstance(mixed, BatchLine)
    assert (mixed.index, mixed.speakers, mixed.image) == (2, (voice, None, other), folder / "frame.png")
    assert isinstance(empty, BatchLine)
    assert (empty.prompt, empty.speakers, empty.image) == ("~~Hi~~ ~~Bye~~", (), None)
    assert isinstance(absolute, BatchLine)
    assert (absolute.speakers, absolute.unknown_keys) == ((other,), ("spk_wav",))
    assert isinstance(published, BatchLine)
    assert (published.prompt, published.written) == ("~~Hello~~~~Hi there~~", "~~Hello~~Hi there")
    assert len(published.notes) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"is not JSON .*whole object a line"),
        ('{"prompt": "cut', r"is not JSON"),
        ("[1]", r"is a JSON list"),
        ({"image_path": "x.png"}, r"has None as its prompt"),
        ({"prompt": "  "}, r"has '  ' as its prompt"),
        ({"prompt": 3}, r"has 3 as its prompt"),
        ({"prompt": "x", "image_path": "absent.png"}, r"absent\.png as image_path, which is neither in .* nor in"),
        ({"prompt": "x", "image_path": "a" * 5000}, r"neither in"),
        ({"prompt": "x", "image_path": ["a"]}, r"as image_path; give a path"),
        ({"prompt": "~~x~~", "spk_wavs": "a.wav"}, r"has 'a\.wav' as spk_wavs; give a list"),
        ({"prompt": "~~x~~", "spk_wavs": ["absent.wav"]}, r"absent\.wav as spk_wavs\[0\]"),
        (
            {"prompt": "~~x~~", "spk_wavs": ["here.wav", "here.wav", "here.wav"]},
            r"3 voice references for 1 speech span",
        ),
    ],
)
def test_bad_lines_say_why(tmp_path: Path, line: Any, message: str) -> None:
    write_voice(tmp_path / "here.wav")
    path = write_lines(tmp_path / "lines.jsonl", {"prompt": "good"}, line, {"prompt": "good too"})
    before, bad, after = read_batch(path)
    assert isinstance(before, BatchLine) and isinstance(after, BatchLine)
    assert isinstance(bad, BadLine)
    assert bad.index == 1
    assert re.search(message, bad.message)


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf\xe4\xbd\xa0\xe5\xa5\xbd\r\n\r\n  ~~Hi~~ \n\xff\xfe\nlast")
    lines = read_batch(path)
    assert [getattr(line, "prompt", None) for line in lines] == ["你好", "~~Hi~~", None, "last"]
    assert [line.index for line in lines] == [0, 2, 3, 4]
    assert isinstance(lines[2], BadLine)
    assert "UTF-8" in lines[2].message
    assert len(read_batch(path, "jsonl")) == 4


@settings(max_examples=100)
@given(st.text(min_size=1))
def test_names_are_names(text: str) -> None:
    name = output_name(BatchLine(7, text, text), 2, "audio_video")
    assert name.startswith("idx7_")
    assert name.endswith("-av-2.mp4")
    assert len(name) <= len("idx7_-av-2.mp4") + 20
    assert Path(name).name == name
    assert len(os.fsencode(name)) < 255
    assert not set(name) & set(' /\\:*?"<>|\n\t\0')


def test_the_published_name() -> None:
    line = BatchLine(3, "一位男子在海边奔跑，夕阳西下，浪花拍岸", "")
    assert output_name(line, 0, "audio_video") == "idx3_一位男子在海边奔跑，夕阳西下，浪花拍岸-av-0.mp4"
    assert (
        output_name(BatchLine(0, "Two people talk/sing a song", ""), 1, "audio") == "idx0_Two_people_talk_sing-av-1.wav"
    )


def test_seeds_are_distinct_and_stable() -> None:
    seeds = {clip_seed(100, index, turn) for index in range(60) for turn in range(40)}
    assert len(seeds) == 60 * 40
    assert clip_seed(100, 0, 0) == 100
    assert clip_seed(7, 5, 3) - clip_seed(0, 5, 3) == 7


# ---- flags ----


def arguments(*flags: str) -> Any:
    return inference_nava.parse_arguments(["--data_file", "x.jsonl", *flags])


def test_guidance_flags_over_the_models_own() -> None:
    model = Guidance(video=5.0, audio=4.0, align=False)
    make = inference_nava.make_guidance
    assert make(arguments(), model) == model
    flags = arguments(
        *("--video_guidance_scale", "2", "--audio_align_guidance_scale", "0", "--timbre_align_guidance_scale", "1")
    )
    assert make(flags, model) == Guidance(video=2.0, audio=4.0, audio_align=0.0, timbre=1.0, align=False)
    assert make(arguments("--no-timbre_cfg"), model).timbre == 0.0
    assert make(arguments("--timbre_cfg"), model).timbre == 3.0
    assert make(arguments("--timbre_cfg"), Guidance(timbre=0.0)).timbre == 3.0
    assert not make(arguments("--align_3d_cfg", "off"), model).align
    assert make(arguments("--align_3d_cfg", "on"), Guidance(align=False)).align
    assert not make(arguments(), Guidance(align=False)).align
    assert make(arguments(), Guidance(timbre=0.0)).timbre == 0.0
    assert make(arguments("--timbre_apart", "on"), model).timbre_apart
    assert not make(arguments("--timbre_apart", "off"), Guidance(timbre_apart=True)).timbre_apart
    assert make(arguments(), Guidance(timbre_apart=True)).timbre_apart


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data_file", "absent.jsonl"], "absent.jsonl is no file"),
        (["--num_samples", "0"], "--num_samples is 0"),
        (["--gen_turn", "0"], "--gen_turn is 0"),
        (["--frames", "0"], "--frames is 0"),
        (["--ckpt", "a", "--model", "b"], "both name a model"),
        (["--model", str(BUNDLE), "--config", "absent.yaml"], "absent.yaml"),
        (["--model", "no/such/folder/anywhere"], "no/such/folder/anywhere"),
        (["--data_format", "csv"], "csv"),
        (["--fram", "3"], "--fram"),
    ],
)
def test_usage_errors_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_lines(tmp_path / "lines.txt", "A street.")
    try:
        code = inference_nava.main(["--data_file", str(path), *flags])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert message in capsys.readouterr().err


# ---- real runs of the official bundle in miniature ----


@pytest.fixture(scope="module")
def pipeline() -> Any:
    checkpoint = pytest.importorskip("nava_core.checkpoint")
    pipeline = checkpoint.load_pipeline(BUNDLE, device="cpu", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def run(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nava_core, "load_pipeline", lambda *args, **kwargs: pipeline, raising=False)
    return lambda path, *flags: inference_nava.main(["--data_file", str(path), "--out_dir", "out", *TINY, *flags])


def outputs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


def test_a_mixed_batch_goes_on_past_bad_lines(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (200, 100), "red").save(tmp_path / "frame.png")
    write_voice(tmp_path / "silent.wav", level=0.0)
    path = write_lines(
        tmp_path / "lines.jsonl",
        {"prompt": "A cafe."},
        "not json",
        {"prompt": "He says ~~Hello~~", "spk_wavs": ["silent.wav"]},
        {"prompt": "A red room.", "image_path": "frame.png"},
    )
    assert run(path) == 1
    assert outputs(tmp_path) == ["idx0_A_cafe.-av-0.mp4", "idx3_A_red_room.-av-0.mp4"]
    assert "lines.jsonl line 2 (idx1) is not JSON" in caplog.text
    assert "lines.jsonl line 3 (idx2): " in caplog.text
    assert "2 clips made, 0 existed, 2 of 4 lines failed: idx1, idx2" in caplog.text
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == outputs(tmp_path)


def test_turns_recipes_and_resume(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "lines.txt", "A cafe.", "A street.", "A field.")
    assert run(path, "--gen_turn", "2", "--num_samples", "2", "--seed", "5") == 0
    names = ["idx0_A_cafe.-av-0.mp4", "idx0_A_cafe.-av-1.mp4", "idx1_A_street.-av-0.mp4", "idx1_A_street.-av-1.mp4"]
    assert outputs(tmp_path) == names
    seeds = [read_recipe(tmp_path / "out" / name)["seed"] for name in names]
    assert seeds == [clip_seed(5, index, turn) for index in (0, 1) for turn in (0, 1)]
    recipe = read_recipe(tmp_path / "out" / names[2])
    assert (recipe["prompt"], recipe["num_frames"], recipe["width"]) == ("A street.", 5, 96)

    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names}
    first = (tmp_path / "out" / names[0]).read_bytes()
    (tmp_path / "out" / names[1]).unlink()
    assert run(path, "--gen_turn", "2", "--num_samples", "2", "--seed", "5") == 0
    assert outputs(tmp_path) == names
    kept = [name for name in names if (tmp_path / "out" / name).stat().st_mtime_ns == written[name]]
    assert kept == [names[0], *names[2:]]
    assert "1 clips made, 3 existed" in caplog.text
    assert (tmp_path / "out" / names[0]).read_bytes() == first


def test_sound_alone(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "frame.png")
    path = write_lines(tmp_path / "lines.jsonl", {"prompt": "Rain.", "image_path": "frame.png"})
    assert run(path, "--modality", "audio", "--duration", "0.5") == 0
    assert outputs(tmp_path) == ["idx0_Rain.-av-0.wav"]
    samples, rate = soundfile.read(tmp_path / "out" / "idx0_Rain.-av-0.wav")
    assert (rate, samples.shape[1]) == (48000, 2)
    assert abs(len(samples) / rate - 0.5) < 0.1
    assert "no use for sound alone" in caplog.text


def test_ranks_share_the_lines(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "lines.txt", "A cafe.", "A street.", "A field.")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(path) == 0
    assert outputs(tmp_path) == ["idx1_A_street.-av-0.mp4"]


def test_sizes_that_the_model_cannot_do_are_usage_errors(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "lines.txt", "A cafe.")
    assert run(path, "--width", "100") == 2
    assert "--width: width is 100" in capsys.readouterr().err
    assert run(path, "--video_guidance_scale", "-1") == 2
    assert "guidance video is -1.0" in capsys.readouterr().err
    assert outputs(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash scripts")
@pytest.mark.parametrize(
    ("script", "suffix", "clips"),
    [("inference.sh", ".mp4", 3), ("inference_timbre.sh", ".mp4", 1), ("inference_t2a.sh", ".wav", 2)],
)
def test_scripts_from_anywhere(tmp_path: Path, script: str, suffix: str, clips: int) -> None:
    sizes = {"WIDTH": "96", "HEIGHT": "64", "FRAMES": "2", "STEPS": "2", "MODEL": str(BUNDLE), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script)], cwd=tmp_path, env=os.environ | sizes, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "eval_results").iterdir())
    assert len(made) == clips
    assert all(path.suffix == suffix for path in made)


def parse(*flags: str) -> Any:
    return inference_nava.parse_arguments(["--data_file", "lines.txt", *flags])


def test_published_layout_switches_go_before_the_profile() -> None:
    from nava_core.options import layout_of

    assert layout_of(parse()) == {} and parse().profile == "auto"
    switched = parse("--profile", "24gb", "--t5_offload", "--group_offload", "--vae_tiling")
    assert layout_of(switched) == {
        "text_encoder": "streamed",
        "blocks": "offloaded",
        "weights": "stored",
        "vae": "tiled",
    }


def test_shortcuts_and_loras_are_read(tmp_path: Path) -> None:
    from nava_core.options import shortcuts_of
    from nava_core.request import Shortcuts

    assert shortcuts_of(parse()) == Shortcuts() and parse().lora == []
    args = parse("--step_cache", "0.1", "--align_steps", "0:0.5", "--negative_steps", ":0.8", "--timbre_steps", "0.2:")
    assert shortcuts_of(args) == Shortcuts(0.1, negative=(0.0, 0.8), align=(0.0, 0.5), timbre=(0.2, 1.0))
    odd = tmp_path / "a:2"
    odd.touch()
    args = parse("--lora", "fast.safetensors:0.5", "--lora", "c:/models/style.safetensors", "--lora", str(odd))
    assert args.lora == [("fast.safetensors", 0.5), ("c:/models/style.safetensors", 1.0), (str(odd), 1.0)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--align_steps", "0.5"), "give START:STOP"),
        (("--align_steps", "0.8:0.2"), "give START:STOP"),
        (("--profile", "7gb"), "12gb"),
    ],
)
def test_impossible_flags_are_refused(flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*flags)
    assert words in capsys.readouterr().err


def test_a_recipe_says_what_was_approximated(run: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.txt", "A cafe.")
    assert run(path, "--step_cache", "0.5", "--align_steps", "0:0.5") == 0
    recipe = read_recipe(tmp_path / "out" / outputs(tmp_path)[0])
    assert recipe["shortcuts"]["step_cache"] == 0.5 and recipe["shortcuts"]["align"] == [0.0, 0.5]
    assert run(path, "--step_cache", "7", "--seed", "9") == 2
