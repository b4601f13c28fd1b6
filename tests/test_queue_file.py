"""A queue as a file: the dry run, what a hostile file gets, and the way out and back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from queue_child import SPEC, SoundRunner
from studio_server import offline_desk

from nava_core.batch import BatchLine, read_batch
from nava_core.engine.jobs import Job
from nava_core.engine.queue import QueueEngine
from nava_core.request import GenerationRequest, Guidance, Shortcuts
from ui import queue_file
from ui.catalogue import Catalogue
from ui.faster import LoraFolder
from ui.queue_export import write_export
from ui.queue_file import ImportPlan, Problem, read_plan, read_uploads
from ui.service import Service


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueEngine]:
    engine = QueueEngine(SoundRunner(), tmp_path_factory.mktemp("clips"))
    engine.wait_until_loaded()
    engine.pause()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def service(engine: QueueEngine) -> Service:
    return Service(engine, offline_desk(), Catalogue("en"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name in ("her.wav", "him.wav"):
        soundfile.write(folder / name, np.sin(np.arange(16_000) / (13 + len(name))) * 0.3, 16_000)
    Image.new("RGB", (96, 64), "red").save(folder / "first.png")
    (folder / "broken.wav").write_bytes(b"RIFF no sound")
    return {path.name: path for path in folder.iterdir()}


def planned(service: Service, *lines: Any, files: dict[str, Path] | None = None) -> ImportPlan:
    data = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return read_plan(service, "queue.jsonl", data.encode(), list((files or {}).items()))


def problem(service: Service, line: Any, files: dict[str, Path] | None = None) -> str:
    [found] = planned(service, line, files=files).lines
    assert isinstance(found, Problem), found
    return found.message


def test_what_a_file_would_queue(service: Service, engine: QueueEngine, files: dict[str, Path]) -> None:
    plan = planned(
        service,
        {"prompt": "A café. She: ~~Hello~~", "spk_wavs": ["data/voices/her.wav"], "image_path": "C:\\x\\first.png"},
        "",
        "{broken",
        {"text": "~~Hello~~Hi there", "spk_wavs": ["her.wav", "him.wav"], "seconds": 0.5, "seed": 7, "genre": "drama"},
        {"prompt": "a ball", "width": 100},
        files=files,
    )
    first, fourth = plan.clips
    assert (first.index, fourth.index) == (0, 3) and [line.index for line in plan.problems] == [2, 4]
    assert first.request.speakers == (str(files["her.wav"]),) and first.request.image == str(files["first.png"])
    assert fourth.request.prompt == "~~Hello~~~~Hi there~~" and fourth.request.seed == 7
    assert "read as the start" in fourth.notes[0] and "genre" in fourth.notes[1]
    assert "divide by 32" in plan.problems[1].message
    before = len(engine.jobs())
    html = queue_file.plan_view(service, plan)
    for words in ("2 clips", "2 lines cannot be used", "is not JSON", "seed 7", "random seed", "2 spoken lines"):
        assert words in html, words
    assert len(engine.jobs()) == before
    said, kind = queue_file.queue_plan(service, plan, "ann")
    assert (said, kind) == ("2 clips were queued.", "hint")
    queued = [job for job in engine.jobs() if job.owner == "ann"]
    assert [job.request.prompt for job in queued] == [first.request.prompt, fourth.request.prompt]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.wav", "other.wav", "her.wav/", "..", "~/her.WAV"])
@pytest.mark.parametrize("key", ["image_path", "image", "spk_wavs", "speakers"])
def test_no_file_of_the_server_is_looked_at(
    service: Service, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, key: str
) -> None:
    for place in (tmp_path, files["her.wav"].parent):
        soundfile.write(place / "other.wav", np.zeros(16_000), 16_000)
        monkeypatch.chdir(place)
    value: Any = path if key.startswith("image") else [path]
    assert "was not uploaded with it" in problem(service, {"prompt": "~~Hello~~", key: value}, files)
    for real in (str(files["her.wav"].parent / "other.wav"), str(Path("other.wav").resolve())):
        assert "was not uploaded" in problem(service, {"prompt": "~~a~~", "spk_wavs": [real]}, files)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "x", "seconds": "6"}, "seconds; give a number"),
        ({"prompt": "x", "seconds": 10**30}, "give a number"),
        ('{"prompt": "x", "seconds": NaN}', "give a number"),
        ('{"prompt": "x", "seed": 1e400}', "give a number"),
        ({"prompt": "x", "seed": 1.5}, "whole number"),
        ({"prompt": "x", "seed": True}, "give a number"),
        ({"prompt": "x", "guidance": 3}, "give an object"),
        ({"prompt": "x", "guidance": {"evil": 3}}, "give an object"),
        ({"prompt": "x", "guidance": {"video": "3"}}, "from 0 to 30"),
        ({"prompt": "x", "guidance": {"align": "no"}}, "true or false"),
        ({"prompt": "x", "negative_prompt": 3}, "give text"),
        ({"prompt": "x", "modality": ["audio"]}, "give text"),
        ({"prompt": "x", "modality": "smell"}, "choose one of"),
        ({"prompt": "x", "seconds": 99}, "up to 10 s"),
        ({"prompt": 3}, "as its prompt"),
        ({"prompt": "a \ud800 b"}, "half a character"),
        ({"prompt": "x", "spk_wavs": ["her.wav"]}, "1 voice reference for 0 speech spans"),
        ({"prompt": "~~x~~", "spk_wavs": ["broken.wav"]}, "it is no sound file"),
        ({"prompt": "~~x~~", "spk_wavs": ["first.png"]}, "it is no sound file"),
        ({"prompt": "x", "image_path": "her.wav"}, "it is no picture"),
        ({"prompt": "~~x~~", "spk_wavs": "her.wav"}, "give a list"),
        ([1, 2], "JSON list"),
        ("[" * 5000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(service: Service, files: dict[str, Path], line: Any, words: str) -> None:
    assert words in problem(service, line, files)


def test_two_files_of_one_name_are_not_guessed_between(service: Service, files: dict[str, Path]) -> None:
    uploads = [("her.wav", files["her.wav"]), ("her.wav", files["him.wav"])]
    data = json.dumps({"prompt": "~~x~~", "spk_wavs": ["her.wav"]}).encode()
    [line] = read_plan(service, "q.jsonl", data, uploads).lines
    assert isinstance(line, Problem) and "2 files of that name" in line.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    *("prompt", "text", "image_path", "spk_wavs", "image", "speakers", "original_prompt", "modality", "fps", "seed"),
    *("negative_prompt", "width", "height", "num_frames", "num_inference_steps", "seconds", "guidance", "__class__"),
)
PATHS = st.sampled_from(["/etc/passwd", "her.wav", "../her.wav", "first.png", "", "None", "\0", "x" * 5000])
OBJECTS = st.fixed_dictionaries(
    {"prompt": st.just("~~a~~ ~~b~~") | JSON},
    optional={key: JSON | PATHS | st.lists(PATHS, max_size=3) for key in KEYS if key != "prompt"},
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=st.lists(OBJECTS.map(json.dumps).map(str.encode) | st.binary(max_size=60), min_size=1, max_size=4))
@example(lines=[b'{"prompt": "a", "fps": 0}'])
@example(lines=[b'\xff\xfe{"prompt": "a"}', b'{"prompt": "<script>alert(1)</script>"}'])
def test_a_hostile_file_gets_messages_and_reads_nothing(
    service: Service, files: dict[str, Path], lines: list[bytes]
) -> None:
    data = b"\n".join(lines)
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        return
    try:
        plan = read_plan(service, "<b>q.jsonl", data, list(files.items()))
    except ValueError as error:
        assert "holds no line" in str(error)
        return
    allowed = {None, *(str(path) for path in files.values())}
    for clip in plan.clips:
        assert {clip.request.image, *clip.request.speakers} <= allowed
        clip.request.resolve(SPEC)
        json.dumps(clip.request.to_recipe(), allow_nan=False)
    html = queue_file.plan_view(service, plan)
    html.encode()
    assert "<script" not in html and "<b>q" not in html


# Uploads


def keep_in(folder: Path) -> Any:
    def keep(data: bytes, name: str) -> Path:
        assert "/" not in name and name not in ("", ".", "..")
        path = folder / f"{len(list(folder.iterdir()))}-{name}"
        path.write_bytes(data)
        return path

    return keep


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gradio"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert get_upload_folder() == str(folder)
    return folder


def test_only_uploads_are_read(service: Service, upload: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"prompt": "SECRET"}\n')
    for payload in ([{"path": str(outside)}], {"path": f"{upload}/../outside.jsonl"}, [{"path": None}], [3]):
        with pytest.raises(ValueError, match="no uploaded file"):
            read_uploads(service, payload, keep_in(upload))
    for nothing in (None, [], [None]):
        with pytest.raises(ValueError, match=r"no .jsonl file"):
            read_uploads(service, nothing, keep_in(upload))
    inside = upload / "abc.jsonl"
    inside.write_text('{"prompt": "mine"}\n')
    plan = read_uploads(service, [{"path": str(inside), "orig_name": "my queue.jsonl"}], keep_in(upload))
    assert plan.name == "my queue.jsonl" and plan.clips[0].request.prompt == "mine"
    (upload / "x.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no .jsonl file among what you chose \(x.wav\)"):
        read_uploads(service, [{"path": str(upload / "x.wav")}], keep_in(upload))
    with pytest.raises(ValueError, match=r"2 .jsonl files"):
        read_uploads(service, [{"path": str(inside)}] * 2, keep_in(upload))


def test_too_much_is_refused_with_the_limit(service: Service, upload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload / "q.jsonl"
    path.write_text('{"prompt": "x"}\n' * (queue_file.MOST_LINES + 1))
    with pytest.raises(ValueError, match="up to 500"):
        read_uploads(service, [{"path": str(path)}], keep_in(upload))
    monkeypatch.setattr(queue_file, "LARGEST_FILE", 2**10)
    with pytest.raises(ValueError, match="MB"):
        read_uploads(service, [{"path": str(path)}], keep_in(upload))
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no line"):
        read_uploads(service, [{"path": str(path)}], keep_in(upload))


def test_an_archive_gives_its_files_and_nothing_more(
    service: Service, upload: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = upload / "all.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../q.jsonl", json.dumps({"prompt": "~~a~~", "spk_wavs": ["her.wav"]}))
        opened.writestr("deep/../her.wav", files["her.wav"].read_bytes())
        opened.writestr("a/..", b"odd")
    plan = read_uploads(service, [{"path": str(archive)}], keep_in(upload))
    [voice] = plan.clips[0].request.speakers
    assert Path(voice).parent == upload and Path(voice).read_bytes() == files["her.wav"].read_bytes()
    monkeypatch.setattr(queue_file, "LARGEST_ARCHIVE", 1000)
    with pytest.raises(ValueError, match="MB"):
        read_uploads(service, [{"path": str(archive)}], keep_in(upload))
    archive.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="cannot be opened"):
        read_uploads(service, [{"path": str(archive)}], keep_in(upload))


# Out and back


REQUESTS = (
    GenerationRequest("a ball"),
    GenerationRequest("两句：~~你好~~ ~~再见~~", seconds=0.5, seed=7, guidance=Guidance(video=1.5, align=False)),
    GenerationRequest("~~a~~ b", modality="audio", seconds=0.71, negative_prompt="noise", original_prompt="mine"),
    GenerationRequest("“quoted” \\ \n new line", modality="video", width=64, height=96, num_frames=13, fps=12),
)


def with_files(files: dict[str, Path], other: Path) -> list[GenerationRequest]:
    soundfile.write(other / "her.wav", np.zeros(16_000), 16_000)  # another recording of the same name
    return [
        *REQUESTS,
        GenerationRequest("~~a~~ ~~b~~", speakers=(None, str(files["her.wav"])), image=str(files["first.png"])),
        GenerationRequest("~~a~~ ~~b~~", speakers=(str(other / "her.wav"), str(files["her.wav"]))),
    ]


def content(value: Any) -> Any:
    return None if value is None else Path(value).read_bytes()


def material(request: GenerationRequest) -> tuple[Any, ...]:
    return content(request.image), tuple(content(voice) for voice in request.speakers)


def test_what_is_exported_the_batch_command_reads_and_the_import_reads_equal(
    service: Service, upload: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    out, unpacked = tmp_path / "out", tmp_path / "unpacked"
    out.mkdir()
    requests = [request.resolve(SPEC) for request in with_files(files, tmp_path)]
    path, left_out = write_export([Job(str(at), request) for at, request in enumerate(requests)], out)
    assert path is not None and path.suffix == ".zip" and not left_out
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["first.png", "her-2.wav", "her.wav", "nava-queue.jsonl"]
        archive.extractall(unpacked)
        assert str(tmp_path).encode() not in archive.read("nava-queue.jsonl")
    lines = read_batch(unpacked / "nava-queue.jsonl")
    assert all(isinstance(line, BatchLine) for line in lines)
    for line, request in zip(lines, requests, strict=True):
        assert isinstance(line, BatchLine) and line.prompt == request.prompt
        assert (content(line.image), tuple(content(voice) for voice in line.speakers)) == material(request)
    moved = upload / "export.zip"
    moved.write_bytes(path.read_bytes())
    plan = read_uploads(service, [{"path": str(moved)}], keep_in(upload))
    assert not plan.problems
    for clip, request in zip(plan.clips, requests, strict=True):
        again = clip.request.resolve(SPEC)
        assert material(again) == material(request)
        bare = {"image": None, "speakers": ()}
        assert again.to_recipe() | bare == request.to_recipe() | bare
        assert not clip.notes


def test_without_files_the_export_is_plain_and_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    jobs = [Job(str(at), request) for at, request in enumerate(REQUESTS)]
    lost = Job("lost", GenerationRequest("~~a~~", speakers=(str(tmp_path / "gone.wav"),)))
    array = Job("array", GenerationRequest("~~a~~", speakers=(np.zeros(192, np.float32),)))
    path, left_out = write_export([*jobs, lost, array], tmp_path)
    assert path == tmp_path / "nava-queue.jsonl" and left_out == [lost, array]
    assert len(read_batch(path)) == len(REQUESTS)
    assert write_export([array], tmp_path) == (None, [array])


def test_shortcuts_and_loras_go_out_by_name_and_come_in_again(engine: QueueEngine, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "pencil.safetensors").write_bytes(b"")
    folder = LoraFolder(tmp_path / "loras")
    here = Service(engine, offline_desk(), Catalogue("en"), loras=folder)
    asked = GenerationRequest(
        "rain",
        modality="audio",
        seed=1,
        shortcuts=Shortcuts(0.1, align=(0.0, 0.5)),
        loras=folder.scaled({"pencil": 0.8}),
    )
    job = engine.job(engine.submit(asked, "lora"))
    exported, _ = write_export([job], tmp_path)
    assert exported is not None and str(tmp_path) not in exported.read_text()
    [clip] = read_plan(here, "queue.jsonl", exported.read_bytes()).clips
    assert (clip.request.shortcuts, clip.request.loras) == (asked.shortcuts, asked.loras)
    [clip] = planned(here, {"prompt": "x", "loras": [["/models/pencil.safetensors", 0.5]]}).clips
    assert clip.request.loras == folder.scaled({"pencil": 0.5})
    assert "there is no LoRA 'gone'" in problem(here, {"prompt": "x", "loras": {"gone": 1}})
    assert "shortcuts is 3; give an object" in problem(here, {"prompt": "x", "shortcuts": 3})
