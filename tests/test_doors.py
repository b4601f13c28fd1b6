"""The other doors: who comes in, which files go out, what may be sent in, and the endpoints as MCP tools."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from queue_child import SoundRunner
from studio_server import get, offline_desk, post, uploaded

import app
from nava_core.engine import DATABASE, Job, QueueEngine
from nava_core.request import GenerationRequest, RequestError
from nava_core.speech import parse_speech
from ui import accounts, create_ui, launch_options, stage_views, views
from ui.accounts import Accounts
from ui.catalogue import Catalogue
from ui.doors import Doors, clips_of, open_for_mcp
from ui.files import MAX_BYTES, uploaded_path
from ui.rewriting import RewriteDesk, UnknownRewriting

ANNA, BEN = ("anna", "sunflower:1"), ("ben", "大海")
SOUND = {"prompt": "rain on a tin roof", "modality": "audio", "num_inference_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def quick_refusals() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "REFUSAL_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueEngine]:
    folder = tmp_path_factory.mktemp("outputs")
    with closing(QueueEngine(SoundRunner(step_seconds=0.15), folder, folder / DATABASE)) as engine:
        engine.wait_until_loaded()
        yield engine


@pytest.fixture(scope="module")
def url(engine: QueueEngine) -> Iterator[str]:
    """The app as `--auth` for two users starts it."""
    people = Accounts.read([f"{name}:{password}" for name, password in (ANNA, BEN)])
    yield from serve(engine, people)


@pytest.fixture(scope="module")
def open_url(engine: QueueEngine) -> Iterator[str]:
    """The app over the same folder for everybody."""
    yield from serve(engine, None)


def serve(engine: QueueEngine, people: Accounts | None) -> Iterator[str]:
    with closing(offline_desk()) as desk:
        demo = create_ui(engine, "en", desk)
        options = launch_options(engine.output_dir, people, [clips_of(engine)])
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
        if people is not None:
            open_for_mcp(demo, url, people)
        try:
            yield url
        finally:
            demo.close()


@pytest.fixture(scope="module")
def anna(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, auth=ANNA, download_files=tmp_path_factory.mktemp("anna"), verbose=False)


@pytest.fixture(scope="module")
def ben(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, auth=BEN, download_files=tmp_path_factory.mktemp("ben"), verbose=False)


@pytest.fixture(scope="module")
def annas_clip(anna: Client, engine: QueueEngine) -> Path:
    anna.predict(**SOUND, seed=1, api_name="/generate")
    (clip,) = [job.result for job in engine.jobs() if job.owner == "anna" and job.request.seed == 1]
    assert clip is not None
    return clip


def fetch(url: str, path: Any, auth: tuple[str, str] | None = None) -> httpx.Response:
    return get(f"{url}gradio_api/file={quote(str(path))}", auth=auth)


# Accounts


def test_accounts_come_from_the_command_line_and_from_a_file_and_hide_their_passwords(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("# who\n\nben:大海\n", encoding="utf-8")
    options = app.parse_arguments(["--auth", "anna:sunflower:1", "--auth-file", str(file)])
    people = options.accounts
    assert people.names == ("anna", "ben")
    assert people.check(*ANNA) and people.check(*BEN)
    wrong = [("anna", "大海"), ("anna", ""), ("nobody", "x"), ("", ""), ("(courier)", "x")]
    assert not any(people.check(*pair) for pair in wrong)
    assert "sunflower" not in f"{options}{people!r}{vars(people)}"
    assert app.parse_arguments([]).accounts is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--auth", "secret"], "--auth number 1 is no account; write USER:PASSWORD"),
        (["--auth", ":secret"], "is no account"),
        (["--auth", "a:secret", "--auth", "a:secret"], "a has a password already"),
        (["--auth", "(x:secret"], "name cannot be used"),
        (["--auth-file", "/nowhere/users"], "cannot be read"),
        (["--auth-file", "/dev/null"], "holds no account"),
    ],
)
def test_an_account_that_cannot_be_is_refused_without_its_password(
    given: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        app.parse_arguments(given)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and "secret" not in said


def test_where_others_can_reach_the_page_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*given: str) -> bool:
        return app._open_to_others(app.parse_arguments(given))

    assert not reached() and not reached("--host", "localhost") and not reached("--host", "127.0.0.2")
    assert reached("--share") and reached("--host", "0.0.0.0") and reached("--host", "studio.example")
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    assert app.parse_arguments([]).host == "0.0.0.0" and reached()


# Two users


def test_nobody_comes_in_without_a_password(url: str, annas_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (
        "config",
        "gradio_api/info",
        "gradio_api/mcp",
        "gradio_api/mcp/schema",
        f"gradio_api/file={annas_clip}",
    ):
        assert get(url + path).status_code in (401, 403), path
    assert post(f"{url}gradio_api/mcp/", json={}).status_code == 401
    assert post(f"{url}gradio_api/call/job", json={"data": ["x"]}).status_code == 401
    assert post(f"{url}gradio_api/upload", files={"files": b"x"}).status_code == 401
    with caplog.at_level(logging.INFO):
        assert get(f"{url}config", auth=("anna", "wrong-word")).status_code == 401
    assert "refused" in caplog.text and "wrong-word" not in caplog.text
    assert get(f"{url}config", auth=BEN).status_code == 200


def test_ones_jobs_are_unknown_to_another(anna: Client, ben: Client, engine: QueueEngine) -> None:
    job_id = anna.predict(**SOUND | {"num_inference_steps": 100}, api_name="/submit")
    assert engine.job(job_id).owner == "anna"
    for endpoint in ("/job", "/cancel"):
        with pytest.raises(AppError) as somebodys:
            ben.predict(job_id, api_name=endpoint)
        with pytest.raises(AppError) as nobodys:
            ben.predict("0" * 16, api_name=endpoint)
        assert str(somebodys.value).replace(job_id, "0" * 16) == str(nobodys.value)
    assert not engine.job(job_id).cancelling
    assert anna.predict(job_id, api_name="/cancel")["id"] == job_id


def test_ones_clips_are_served_to_nobody_else(url: str, annas_clip: Path) -> None:
    found = fetch(url, annas_clip, ANNA)
    assert found.status_code == 200 and found.content == annas_clip.read_bytes()
    refused, nothing = fetch(url, annas_clip, BEN), fetch(url, annas_clip.with_name("none.wav"), BEN)
    assert refused.status_code == nothing.status_code == 403
    assert refused.text.replace(annas_clip.name, "none.wav") == nothing.text
    deprecated = get(f"{url}gradio_api/file/{annas_clip}", auth=BEN, follow_redirects=True)
    assert deprecated.status_code == 403


def test_a_password_counts_for_more_than_anothers_cookie(url: str, annas_clip: Path) -> None:
    with httpx.Client(timeout=60.0) as browser:
        browser.post(f"{url}login", data={"username": ANNA[0], "password": ANNA[1]})
        address = f"{url}gradio_api/file={annas_clip}"
        assert browser.get(address).status_code == 200
        assert browser.get(address, auth=BEN).status_code == 403


def test_rewritings_are_their_owners() -> None:
    with closing(offline_desk()) as desk:
        mine = desk.start("a red ball falls", owner="anna")
        with pytest.raises(UnknownRewriting, match="no rewriting has the id"):
            desk.rewriting(mine, "ben")
        desk.start("a blue star rises", replaces=mine, owner="ben")
        desk.cancel(mine, "ben")
        _until_done(desk, mine)
        assert desk.rewriting(mine, "anna").state == "done" and not desk.rewriting(mine).replaced


def _until_done(desk: RewriteDesk, rewriting_id: str) -> None:
    while not desk.rewriting(rewriting_id).finished:
        time.sleep(0.02)


# Files that go out


def test_nothing_outside_the_apps_folders_is_served(
    url: str, open_url: str, engine: QueueEngine, annas_clip: Path, tmp_path: Path
) -> None:
    folder = engine.output_dir
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link = folder / "link.txt"
    link.symlink_to(secret)
    (folder / ".nava-1-x-").mkdir()
    (folder / ".nava-1-x-" / "half.mp4").write_bytes(b"half")
    (folder / ".studio" / "trash").mkdir()
    (folder / ".studio" / "trash" / "old.mp4").write_bytes(b"old")
    named = [
        "/etc/passwd",
        "../" * 12 + "etc/passwd",
        f"{folder}/../../../../../../../../etc/passwd",
        f"{get_upload_folder()}/../../../etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/",
        "https://example.com/x.png",
        secret,
        link,
        folder,
        folder / DATABASE,
        f"{folder / DATABASE}-wal",
        str(folder / DATABASE).upper(),
        folder / ".studio" / "x" / ".." / DATABASE.name,
        folder / ".studio" / "trash" / "old.mp4",
        folder / ".nava-1-x-" / "half.mp4",
        "app.py",
        Path(app.__file__),
        "\0",
        "x" * 5000,
        "",
    ]
    for path in named:
        for address, auth in ((url, ANNA), (open_url, None)):
            answer = fetch(address, path, auth)
            assert answer.status_code in (403, 404), path
            assert "secret" not in answer.text.replace(str(secret), "")
    assert fetch(open_url, annas_clip).status_code == 200, "where nobody logs in, clips are everybody's"


def test_a_library_says_whose_the_rest_of_the_folder_is(tmp_path: Path) -> None:
    """Whoever keeps old clips and stills is asked; what nobody speaks for is served to nobody."""
    poster = tmp_path / ".studio" / "posters" / "1.jpg"
    owns = [lambda owner, path: (owner, path) == ("anna", poster)]
    doors = Doors(lambda *_: None, tmp_path, Accounts({"anna": "x"}), owns)
    assert doors._may_have("anna", str(poster)) and not doors._may_have("ben", str(poster))
    assert not doors._may_have("", str(poster)) and not doors._may_have("anna", str(tmp_path / "old.mp4"))
    for private in ("files/1.wav", "voices/1.wav", "gallery.sqlite3", "posters"):
        assert not Doors(lambda *_: None, tmp_path)._may_have("", str(tmp_path / ".studio" / private)), private


def test_no_argument_of_an_endpoint_reaches_a_file_of_the_server(
    url: str, engine: QueueEngine, annas_clip: Path, ben: Client
) -> None:
    database = engine.output_dir / DATABASE
    link = Path(get_upload_folder()) / "link.png"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/passwd")
    info = ben.view_api(return_format="dict")["named_endpoints"]["/submit"]["parameters"]
    names = [item["parameter_name"] for item in info]
    paths = ["/etc/passwd", annas_clip, database, f"{get_upload_folder()}/../../../etc/passwd", link, "\0", 7, None]
    for path in paths:
        plain = {"path": path if path is None or isinstance(path, int) else str(path)}
        for file in (plain, plain | {"meta": {"_type": "gradio.FileData"}}):
            for changes in ({"image": file, "modality": "video"}, {"speakers": [file]}):
                given = {"prompt": "x ~~a~~", "modality": "audio"} | changes
                data = [given.get(name) for name in names]
                call = post(f"{url}gradio_api/call/submit", json={"data": data}, auth=BEN)
                address = f"{url}gradio_api/call/submit/{call.json().get('event_id')}"
                answer = get(address, auth=BEN).text
                assert "event: complete" not in answer and "root:" not in answer, (path, changes)
    link.unlink()
    assert not [job for job in engine.jobs() if job.owner == "ben" and (job.request.image or any(job.request.speakers))]


# Files that come in


def test_an_upload_that_is_too_large_is_refused_by_the_server(url: str) -> None:
    files = {"files": ("large.wav", b"\0" * (MAX_BYTES + 1024))}
    answer = post(f"{url}gradio_api/upload", files=files, auth=BEN, timeout=120)
    assert answer.status_code == 413


def test_an_upload_that_is_no_picture_reaches_the_client_in_words(ben: Client, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"hello")
    with pytest.raises(AppError, match=r"image: photo.png is no picture"):
        ben.predict("a ball", image=handle_file(tmp_path / "photo.png"), api_name="/submit")


# Words that people wrote


class _Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags += [tag, *(name for name, _ in attrs if name.startswith("on"))]


EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_html_in_prompts_and_file_names_stays_text(language: str) -> None:
    text = Catalogue(language)
    recipe = {"prompt": EVIL, "original_prompt": EVIL, "negative_prompt": EVIL, "model": EVIL, "seed": 1}
    recipe |= {"image": EVIL, "speakers": [EVIL]}
    with pytest.raises(RequestError) as caught:
        uploaded_path("image", uploaded("<img src=x onerror=alert(1)>.png", b"x"))
    shown = [
        views.recipe(text, recipe),
        views.message(str(caught.value), "error"),
        views.message(EVIL, "warning"),
        views.speech(text, parse_speech(f"{EVIL} ~~{EVIL}~~ <S>{EVIL}<E>")),
        views.quiet(EVIL),
        stage_views.progress(text, Job("1", GenerationRequest(EVIL)), None, EVIL),
        stage_views.picture(text, Job("1", GenerationRequest(EVIL), "failed")),
    ]
    for html in shown:
        assert not {"img", "script", "onerror"} & set(_Tags(html).tags), html


# The endpoints as they describe themselves, and their progress


def test_progress_says_what_is_being_done(anna: Client) -> None:
    job = anna.submit(**SOUND | {"num_inference_steps": 40}, api_name="/generate")
    seen: list[tuple[int, int, str]] = []
    while not job.done():
        for unit in job.status().progress_data or ():
            if not seen or seen[-1] != (unit.index, unit.length, unit.desc):
                seen.append((unit.index, unit.length, unit.desc))
        time.sleep(0.02)
    assert job.result()[1]["prompt"] == SOUND["prompt"]
    assert {length for _, length, _ in seen} == {40} and len({index for index, _, _ in seen}) >= 2
    assert any(desc.startswith("denoise") for _, _, desc in seen)


def test_each_tool_says_what_it_does_and_what_it_takes(url: str) -> None:
    tools = get(f"{url}gradio_api/mcp/schema", auth=BEN).json()
    assert len(tools) >= 6
    for tool in tools:
        assert len(tool["description"]) > 40, tool["name"]
        properties = tool["inputSchema"]["properties"]
        assert "request" not in properties
        for name, argument in properties.items():
            assert argument.get("description"), (tool["name"], name)


def test_a_voice_in_a_list_may_be_an_address(ben: Client, engine: QueueEngine, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "v.wav", np.zeros(16_000), 16_000)
    inline = "data:audio/wav;base64," + base64.b64encode((tmp_path / "v.wav").read_bytes()).decode()
    given = {"prompt": "x ~~a~~", "modality": "audio", "num_inference_steps": 2}
    job_id = ben.predict(**given, speakers=[inline], api_name="/submit")
    assert engine.job(job_id).request.has_references
    stolen = "http://x.invalid/gradio_api/file=/etc/passwd"
    for bad in ("http://127.0.0.1:1/v.wav", stolen, "data:audio/wav;base64,aGVsbG8="):
        with pytest.raises(AppError, match="speakers: "):
            ben.predict(**given, speakers=[bad], api_name="/submit")


def test_an_mcp_client_logs_in_sees_progress_and_gets_its_own_clip(
    url: str, engine: QueueEngine, tmp_path: Path
) -> None:
    heard: list[str] = []
    soundfile.write(tmp_path / "voice.wav", np.zeros(16_000), 16_000)
    with (tmp_path / "voice.wav").open("rb") as file:
        (voice,) = post(f"{url}gradio_api/upload", files={"files": file}, auth=BEN).json()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async def talk() -> Any:
        address = f"{url}gradio_api/mcp/"
        async with (
            streamablehttp_client(address, auth=httpx.BasicAuth(*BEN)) as (reader, writer, _),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            (name,) = [tool.name for tool in (await session.list_tools()).tools if tool.name.endswith("submit")]
            name = name.removesuffix("submit") + "generate"
            arguments = {"prompt": "rain ~~a~~ ~~b~~", "modality": "audio", "seed": 77, "num_inference_steps": 40}
            arguments |= {"guidance": {"timbre": 2}, "speakers": [None, f"{url}gradio_api/file={voice}"]}
            return await session.call_tool(name, arguments, progress_callback=on_progress)

    answer = asyncio.run(asyncio.wait_for(talk(), 240))
    assert not answer.isError, answer
    assert any("denoise" in message for message in heard)
    (job,) = [job for job in engine.jobs() if job.request.seed == 77]
    assert job.owner == "ben" and job.state == "done"
    assert job.request.speakers[0] is None and job.request.speakers[1].endswith("voice.wav")


def test_files_are_taken_from_a_real_upload_of_the_right_owner(
    anna: Client, engine: QueueEngine, tmp_path: Path
) -> None:
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, np.sin(np.arange(16_000) / 20) * 0.3, 16_000)
    job_id = anna.predict("x ~~a~~", speakers=[handle_file(voice)], modality="audio", api_name="/submit")
    assert engine.job(job_id).owner == "anna" and engine.job(job_id).request.has_references
