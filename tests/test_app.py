"""The page without a browser: the handlers' messages, the named endpoints over HTTP, and the program itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
from conftest import GOLDEN
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from queue_child import SoundRunner
from studio_server import TypingModel, form, get, offline_desk, post, slow_down, studio, tiny_pipeline

import app
from nava_core.engine import DATABASE, EngineStatus, InProcessEngine, Job, JobError, QueueEngine
from nava_core.media import read_recipe
from nava_core.request import GenerationRequest
from nava_core.speech import parse_speech
from rewriter import Rewriter
from ui import captions, handlers, updates
from ui.catalogue import Catalogue, entries
from ui.library.voices import VoiceLibrary
from ui.panels import Page
from ui.rewriting import RewriteDesk
from ui.service import Service
from ui.studio import build_page

ROOT = Path(__file__).parent.parent
TEXT = Catalogue("en")


# The handlers, on a page that nobody has launched


@pytest.fixture
def page() -> Page:
    with gr.Blocks():
        return build_page(TEXT, EngineStatus("loading"))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def engine(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(lambda: pipeline, tmp_path_factory.mktemp("outputs"))
    engine.wait_until_loaded()
    yield engine
    engine.close()


@pytest.fixture
def service(engine: InProcessEngine, tmp_path: Path) -> Iterator[Service]:
    with closing(offline_desk()) as desk, closing(VoiceLibrary(tmp_path / "voices")) as voices:
        yield Service(engine, desk, TEXT, voices)


def values_of(page: Page, **changes: Any) -> list[Any]:
    """What the browser sends for a form; files come as dictionaries and lie in Gradio's folder for uploads."""
    written = form(**{"size": "96x64", "seconds": 0.5, "steps": 2} | changes)
    image = written.image and {"path": f"{get_upload_folder()}/{written.image}"}
    return [*(image if name == "image" else getattr(written, name) for name in page.form), written.assignments]


def run(updates: Any) -> list[dict[Any, Any]]:
    async def collect() -> list[dict[Any, Any]]:
        return [update async for update in updates]

    return asyncio.run(collect())


def test_each_field_has_a_place_for_its_error_and_a_name() -> None:
    with gr.Blocks():
        page = build_page(TEXT, EngineStatus("loading"))
    assert page.errors.keys() == updates.FIELD_LABELS.keys()
    assert all(key in entries() for key in updates.FIELD_LABELS.values())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"seed": "x"}, "seed"),
        ({"seconds": 60}, "seconds"),
        ({"video": 99}, "guidance"),
        ({"assignments": {"lines": ["你好", "再见"], "voices": [None, "deleted"]}}, "speakers"),
        ({"modality": "audio", "image": "some.png"}, "image"),
        ({"steps": 0}, "num_inference_steps"),
    ],
)
def test_an_error_stands_beside_its_field_and_nothing_typed_changes(
    service: Service, page: Page, changes: dict[str, Any], field: str
) -> None:
    for press, before in ((handlers.generate, [None, None, None]), (captions.rewrite_and_generate, [None])):
        shown = press(service, page, *before, *values_of(page, **changes))
        place = page.errors[field]
        assert shown[place]["visible"] and 'data-kind="error"' in shown[place]["value"]
        others = set(page.errors.values()) - {place}
        assert not any(shown[other]["visible"] for other in others)
        assert shown[page.bar.notice]["visible"]
        assert not set(shown) & set(page.form.values())


def test_a_job_is_watched_to_its_clip(service: Service, page: Page) -> None:
    started = handlers.generate(service, page, None, None, None, *values_of(page, random_seed=True))
    assert not any(started[place]["visible"] for place in page.errors.values())
    assert started[page.bar.generate]["value"] == TEXT("generate.busy") and started[page.bar.cancel]["visible"]
    job_id = started[page.watched]
    watched = run(handlers.watch(service, page, job_id))
    assert len({frozenset(update) for update in watched}) == 1, "each state is whole"
    job, last = service.engine.job(job_id), watched[-1]
    assert started[page.job]["id"] == job_id and started[page.bar.seed] == str(job.request.seed)
    assert job.result is not None and job.result.name in last[page.stage.clip]["value"]
    assert last[page.stage.made]["clip"] == str(job.result)
    assert str(job.request.seed) in last[page.stage.recipe] and last[page.stage.recipe_json] == job.recipe
    assert last[page.bar.generate]["interactive"] and not last[page.bar.cancel]["visible"]


def test_watching_nothing_changes_nothing(service: Service, page: Page) -> None:
    assert run(handlers.watch(service, page, None)) == [{page.stage.progress: gr.skip()}]


def test_a_reloaded_page_shows_the_last_result_and_what_was_asked(service: Service, page: Page) -> None:
    started = handlers.generate(service, page, None, None, None, *values_of(page))
    run(handlers.watch(service, page, started[page.watched]))
    shown = asyncio.run(handlers.open_page(service, page, started[page.job], None))
    assert shown[page.scene.prompt]["value"] == form().prompt
    assert shown[page.bar.random_seed]["value"] is False
    assert shown[page.bar.size]["value"] == "96x64" and shown[page.bar.seconds]["value"] == 0.5
    assert shown[page.bar.size]["choices"] and shown[page.watched] == started[page.watched]
    assert shown[page.stage.clip]["visible"] and ".mp4" in shown[page.stage.clip]["value"]


def test_a_job_from_before_a_restart_is_forgotten_quietly(service: Service, page: Page) -> None:
    shown = asyncio.run(handlers.open_page(service, page, {"id": "gone", "random_seed": True}, None))
    assert shown[page.job] is None and shown[page.watched] is None
    assert "value" not in shown.get(page.scene.prompt, {}) and shown[page.bar.generate]["interactive"]


def test_a_failure_inside_the_program_is_told_with_what_was_written_kept(service: Service, page: Page) -> None:
    for kind in ("internal", "out_of_memory", "model"):
        shown = updates.failure(service, page, JobError("boom <b>", kind=kind))  # type: ignore[arg-type]
        assert set(shown) == {page.bar.notice} and "<b>" not in shown[page.bar.notice]["value"]


def test_writing_shows_spans_in_their_colours_hint_and_suggestion(service: Service, page: Page, tmp_path: Path) -> None:
    assert service.voices is not None
    alone = handlers.write(service, page, "猫 ~~Hello~~Hi there")
    assert not alone[page.scene.suggestion]["visible"] and alone[page.scene.hint]["visible"]
    soundfile.write(tmp_path / "voice.wav", np.sin(np.arange(32_000) / 13) * 0.3, 16_000)
    voices = [service.voices.add("", tmp_path / "voice.wav", name, consent=True) for name in ("Ann", "Bo")]
    shown = handlers.write(service, page, "猫 ~~Hello~~Hi there")
    assert shown[page.scene.suggestion]["visible"], "as many voices as marks"
    assert handlers.follow_suggestion(service, "猫 ~~Hello~~Hi there") == "猫 ~~Hello~~~~Hi there~~"
    stored = {"lines": ["a", "b"], "voices": [voices[1].id, None]}
    two = handlers.write(service, page, "圆球 ~~a~~ ~~b~~", stored)
    assert f'data-colours="{voices[1].colour},2"' in two[page.scene.speech] and not two[page.scene.hint]["visible"]


def test_the_negative_prompt_follows_the_modality_unless_it_is_ones_own(service: Service) -> None:
    assert handlers.choose_modality(service, "audio", "模糊") == "噪声"
    assert handlers.choose_modality(service, "video", "噪声") == "模糊"
    assert handlers.choose_modality(service, "audio", "rain") == gr.skip()


# The endpoints, over HTTP


@pytest.fixture(scope="module")
def url(engine: InProcessEngine) -> Iterator[str]:
    with studio(engine, engine.output_dir) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, download_files=tmp_path_factory.mktemp("downloads"), verbose=False)


def voice_file(folder: Path) -> Path:
    path = folder / "voice.wav"
    tone = np.sin(2 * np.pi * 200 * np.arange(24_000) / 16_000) * 0.3
    soundfile.write(path, tone, 16_000)
    return path


def test_the_named_endpoints_are_these_with_the_pipelines_arguments(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {
        "/generate",
        "/submit",
        "/job",
        "/cancel",
        "/rewrite",
        "/rewrite_and_generate",
        "/speaker_embedding",
    }
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names == [parameter["parameter_name"] for parameter in endpoints["/rewrite_and_generate"]["parameters"]]
    assert [parameter["parameter_name"] for parameter in endpoints["/rewrite"]["parameters"]] == ["prompt"]
    fields = "prompt negative_prompt image speakers width height num_frames seconds fps num_inference_steps guidance"
    assert names == [*fields.split(), "seed", "modality", "shortcuts", "loras"]
    required = [p["parameter_name"] for p in endpoints["/generate"]["parameters"] if not p["parameter_has_default"]]
    assert required == ["prompt"]


def test_no_event_tells_components_how_far_it_is(url: str) -> None:
    events = [event for event in get(f"{url}config").json()["dependencies"] if event["backend_fn"]]
    assert len(events) > 50 and all(event["show_progress_on"] == [] for event in events)


def test_the_same_endpoints_are_mcp_tools(url: str) -> None:
    tools = get(f"{url}gradio_api/mcp/schema").json()
    names = {tool["name"] for tool in tools}
    endpoints = {"generate", "submit", "job", "cancel", "rewrite", "rewrite_and_generate", "speaker_embedding"}
    assert {name.removeprefix("nava_studio_") for name in names} == endpoints
    (generate,) = [tool for tool in tools if tool["name"].removeprefix("nava_studio_") == "generate"]
    assert "Make a clip" in generate["description"] and generate["inputSchema"]["required"] == ["prompt"]


def test_generate_blocks_and_returns_the_clip_and_its_recipe(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "first.png"
    Image.new("RGB", (96, 64), "red").save(image)
    job = client.submit(
        prompt="圆球 ~~你好~~ ~~再见~~",
        image=handle_file(image),
        speakers=[None, handle_file(voice_file(tmp_path))],
        num_inference_steps=3,
        guidance={"timbre": 2.0},
        seed=11,
        api_name="/generate",
    )
    clip, recipe = job.result()
    assert read_recipe(clip) == recipe
    assert (recipe["seed"], recipe["num_inference_steps"], recipe["guidance"]["timbre"]) == (11, 3, 2.0)
    assert recipe["speakers"][0] is None and recipe["speakers"][1].endswith("voice.wav")


def test_an_error_reaches_the_client_with_its_field(client: Client) -> None:
    with pytest.raises(AppError, match=r"width: .*must divide by 32"):
        client.predict(prompt="圆球", width=100, api_name="/generate")
    with pytest.raises(AppError, match="guidance has no volume"):
        client.predict(prompt="圆球", guidance={"volume": 1}, api_name="/submit")
    with pytest.raises(AppError, match="no job has the id"):
        client.predict("nothing", api_name="/job")


def test_a_file_of_the_server_cannot_be_named_as_an_upload(client: Client, url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (96, 64)).save(secret)
    names = [
        item["parameter_name"]
        for item in client.view_api(return_format="dict")["named_endpoints"]["/submit"]["parameters"]
    ]
    plain = {"path": str(secret)}
    for file in (plain, plain | {"meta": {"_type": "gradio.FileData"}}):
        for changes in ({"image": file}, {"speakers": [file]}):
            given = {"prompt": "圆球 ~~a~~", "modality": "audio_video"} | changes
            call = post(f"{url}gradio_api/call/submit", json={"data": [given.get(name) for name in names]})
            answer = get(f"{url}gradio_api/call/submit/{call.json()['event_id']}").text
            assert "event: error" in answer and "event: complete" not in answer


def test_the_embedding_of_a_voice(client: Client, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, np.sin(np.arange(24_000) / 13) * 0.3, 16_000)
    numbers = client.predict(handle_file(voice), api_name="/speaker_embedding")
    assert len(numbers) == 192 and all(isinstance(number, float) for number in numbers)
    soundfile.write(voice, np.zeros(8_000), 16_000)
    with pytest.raises(AppError, match=r"speakers: .*at least 1 s"):
        client.predict(handle_file(voice), api_name="/speaker_embedding")


def test_submit_job_and_cancel(client: Client, pipeline: Any, tmp_path: Path) -> None:
    with slow_down(pipeline, 0.2):
        job_id = client.predict(prompt="圆球", num_inference_steps=100, api_name="/submit")
        state, clip = client.predict(job_id, api_name="/job")
        assert state["id"] == job_id and state["state"] in ("queued", "running") and clip is None
        assert client.predict(job_id, api_name="/cancel")["id"] == job_id
    done = client.predict(prompt="圆球", num_inference_steps=1, api_name="/generate")
    assert Path(done[0]).suffix == ".mp4"
    assert client.predict(job_id, api_name="/job")[0]["state"] == "cancelled"


def test_progress_reaches_the_client(client: Client, pipeline: Any, engine: InProcessEngine) -> None:
    with slow_down(pipeline, 0.3):
        job = client.submit(prompt="圆球", num_inference_steps=100, api_name="/generate")
        steps = set()
        while len({index for index, _ in steps}) < 2:
            assert not job.done()
            steps |= {(unit.index, unit.length) for unit in job.status().progress_data or ()}
            time.sleep(0.02)
        engine.cancel(engine.jobs()[0].id)
    with pytest.raises(AppError):
        job.result()
    assert {length for _, length in steps} == {100}


def test_rewrite_returns_a_caption_with_the_speech_and_who_wrote_it(client: Client) -> None:
    caption, account = client.predict("A red ball falls. She says: ~~Hello there~~", api_name="/rewrite")
    assert "红色" in caption and [span.text for span in parse_speech(caption).spans] == ["Hello there"]
    assert (account["backend"], account["outcome"]) == ("offline", "composed")
    assert "offline composer" in account["label"] and account["notes"]
    with pytest.raises(AppError, match="prompt: the prompt is empty"):
        client.predict(" ", api_name="/rewrite")


def test_rewrite_and_generate_returns_the_clip_its_recipe_and_the_caption(client: Client) -> None:
    prompt = "A red ball falls. She says: ~~Hello there~~"
    arguments = {"prompt": prompt, "num_inference_steps": 1, "seed": 5}
    clip, recipe, caption = client.predict(**arguments, api_name="/rewrite_and_generate")
    assert read_recipe(clip) == recipe
    assert (recipe["prompt"], recipe["original_prompt"], recipe["seed"]) == (caption, prompt, 5)
    assert "~~Hello there~~" in caption
    with pytest.raises(AppError, match=r"width: .*must divide by 32"):
        client.predict(prompt=prompt, width=100, api_name="/rewrite_and_generate")


def test_a_rewriting_reports_how_far_it_is_and_ends_with_its_client(engine: InProcessEngine) -> None:
    model = TypingModel()
    model.typed.clear()
    with studio(engine, engine.output_dir, desk=RewriteDesk(lambda: Rewriter(model))) as url:
        client = Client(url, verbose=False)
        job = client.submit("a quiet café", api_name="/rewrite")
        while not any(unit.desc == "writing" and unit.index for unit in job.status().progress_data or ()):
            assert not job.done()
            time.sleep(0.02)
        job.cancel()
        while not model.stopped:
            time.sleep(0.05)
        model.typed.set()
        caption, account = client.predict("a quiet café", api_name="/rewrite")
        assert account["outcome"] == "as is" and "SECRET" not in caption


# The program


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_arguments() -> None:
    options = app.parse_arguments([])
    assert (options.host, options.port, options.share) == ("127.0.0.1", 7860, False)
    assert (options.output_dir, options.ranks, options.rewriter) == (Path("outputs"), 1, "auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "0"], "give 1 or more"),
        (["--idle-minutes", "-1"], "more than 0"),
        (["--in-process", "--ranks", "2"], "--ranks asks for 2"),
        (["--rewriter", "offline", "--rewriter-url", "http://127.0.0.1:1"], "asks no server"),
        (["--rewriter-url", "nonsense"], "'nonsense'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        app.parse_arguments(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_model_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    missing = tmp_path / "no-model"
    arguments = ["--model", str(missing), "--port", str(free_port()), "--output-dir", str(tmp_path)]
    assert app.main(arguments) == 2
    assert "no-model" in caplog.text


def test_a_second_app_on_the_same_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = QueueEngine(SoundRunner(), tmp_path, tmp_path / DATABASE)
    assert app.main(["--in-process", "--output-dir", str(tmp_path)]) == 2
    assert "another NAVA Studio" in caplog.text
    first.close()


def test_a_port_that_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        model = ["--in-process", "--model", str(GOLDEN / "official_tiny")]
        assert app.main([*model, "--port", port, "--output-dir", str(tmp_path)]) == 2
    assert f"127.0.0.1:{port}" in caplog.text and "--port" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_the_app_with_its_worker_ends_in_order_and_goes_on_where_it_was(tmp_path: Path) -> None:
    small = {"width": 64, "height": 64, "num_frames": 5}
    with running_app(tmp_path) as (process, client):
        clip, recipe, caption = client.predict(
            prompt="A red ball ~~Hi~~", **small, num_inference_steps=2, api_name="/rewrite_and_generate"
        )
        assert Path(clip).suffix == ".mp4" and recipe["prompt"] == caption
        job_id = client.predict(prompt="圆球", **small, num_inference_steps=500, api_name="/submit")
        while not client.predict(job_id, api_name="/job")[0]["step"]:
            time.sleep(0.1)
        children = descendants(process.pid)
        assert len(children) >= 2, "the launcher and a worker"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        while any(Path(f"/proc/{child}").exists() for child in children):
            time.sleep(0.1)
    with running_app(tmp_path) as (process, client):
        found = client.predict(job_id, api_name="/job")[0]
        assert found["state"] in ("queued", "running", "done") and found["attempts"] >= 1
        client.predict(job_id, api_name="/cancel")


@contextmanager
def running_app(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """app.py as a person starts it, over the golden bundle; it is killed if it does not end by itself."""
    port = free_port()
    model = ["--model", str(GOLDEN / "official_tiny"), "--device", "cpu", "--dtype", "float32"]
    place = ["--rewriter", "offline", "--port", str(port), "--output-dir", str(folder)]
    process = subprocess.Popen([sys.executable, "app.py", *model, *place], cwd=ROOT)
    try:
        while True:
            assert process.poll() is None, "the app ended"
            try:
                client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=folder)
                break
            except (httpx.HTTPError, ValueError):
                time.sleep(0.5)
        yield process, client
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_a_snapshot_knows_whether_it_is_the_last() -> None:
    job = Job("1", GenerationRequest("x"))
    assert not job.finished and Job("1", job.request, state="failed").finished
