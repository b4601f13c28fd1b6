"""A Space: the borrowed GPU around a run, its seconds, and what would be published."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from studio_server import tiny_pipeline

import app
from nava_core.engine import InProcessRunner, Progress, RunFailed, Task
from nava_core.engine.borrowed import LEAST_SECONDS, MARGIN, BorrowedRunner, Cost, lender
from nava_core.engine.estimates import RunTimes, Settings
from nava_core.media import read_recipe
from nava_core.request import GenerationCancelled, GenerationRequest, Guidance, RequestError

ROOT = Path(__file__).parent.parent


class Lender(ModuleType):
    """A stand-in for the `spaces` package with its decorator's contract, as its source (0.51) has it: `GPU(duration=)`
    takes a generator function, or a plain one with a fixed number of seconds; when that is called, `duration` is asked
    with the same arguments; arguments and items
    pass between two processes, so they are pickled; closing the outer generator closes the inner one; an error inside
    arrives as another, which only names its class. Here the work stays in one process and needs no GPU.
    """

    def __init__(self) -> None:
        super().__init__("spaces")
        self.asked: list[int] = []
        self.refusal: Exception | None = None
        self.closed = 0

    def GPU(self, *, duration: Callable[..., int] | int) -> Callable[..., Any]:
        def decorate(task: Callable[..., Any]) -> Callable[..., Any]:
            if isinstance(duration, int):
                return wraps(task)(lambda *arguments: pickle.loads(pickle.dumps(task(*arguments))))
            assert inspect.isgeneratorfunction(task)

            @wraps(task)
            def lent(*arguments: Any) -> Iterator[Any]:
                self.asked.append(duration(*arguments))
                if self.refusal is not None:
                    raise self.refusal
                items = task(*pickle.loads(pickle.dumps(arguments)))
                try:
                    for item in items:
                        yield pickle.loads(pickle.dumps(item))
                except GeneratorExit:
                    self.closed += 1
                    raise
                except Exception as error:  # noqa: BLE001 - as it is there
                    raise RuntimeError(type(error).__name__) from None
                finally:
                    items.close()

            return lent

        return decorate


@pytest.fixture
def spaces() -> Lender:
    return Lender()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture
def runner(spaces: Lender, pipeline: Any) -> Iterator[BorrowedRunner]:
    runner = BorrowedRunner(lambda: pipeline, spaces)
    runner.start()
    yield runner
    runner.close()


def task(runner: BorrowedRunner, folder: Path, **changes: Any) -> Task:
    assert runner._spec is not None
    request = GenerationRequest("圆球 ~~你好~~", seed=3, num_inference_steps=3)
    return Task("job", GenerationRequest(**{**vars(request), **changes}).resolve(runner._spec), folder / "clip")


def test_a_clip_is_made_on_a_gpu_that_is_lent_for_it(runner: BorrowedRunner, spaces: Lender, tmp_path: Path) -> None:
    seen: list[Progress] = []
    made = task(runner, tmp_path)
    outcome = runner.run(made, seen.append, threading.Event())
    assert read_recipe(outcome.path) == outcome.recipe and outcome.recipe["seed"] == 3
    assert [item.step for item in seen if item.phase == "denoise"] == [1, 2, 3]
    assert spaces.asked == [LEAST_SECONDS]
    runner.unload()
    assert runner.run(made, seen.append, threading.Event()).recipe["seed"] == 3, "the model is still there"


def test_cancelling_gives_the_gpu_back(runner: BorrowedRunner, spaces: Lender, tmp_path: Path) -> None:
    cancelled = threading.Event()
    with pytest.raises(GenerationCancelled):
        runner.run(task(runner, tmp_path, num_inference_steps=50), lambda _: cancelled.set(), cancelled)
    assert spaces.closed == 1 and not list(tmp_path.iterdir())


def test_errors_keep_their_words_on_the_way(
    runner: BorrowedRunner, spaces: Lender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photo.png").write_bytes(b"hello")
    with pytest.raises(RequestError, match=r"photo\.png") as caught:
        runner.run(task(runner, tmp_path, image=str(tmp_path / "photo.png")), print, threading.Event())
    assert caught.value.field == "image"
    spaces.refusal = RuntimeError("You have exceeded your GPU quota")
    with caplog.at_level(logging.CRITICAL), pytest.raises(RunFailed, match="exceeded your GPU quota") as failed:
        runner.run(task(runner, tmp_path), print, threading.Event())
    assert failed.value.error.kind == "lost", "worth another try"


def test_the_seconds_follow_the_request_by_the_formula() -> None:
    big = Cost(parameters=6_300_000_000, layers=30, width=3072)
    settings = Settings("audio_video", tokens=30_000, steps=50, passes=4)
    one_pass = 2 * 6.3e9 * 3e4 + 4 * 30 * 3072 * 3e4**2
    assert big.estimate(settings) == pytest.approx(10 + 50 * 4 * one_pass / 1.4e14 + 15)
    fewer = [Settings("audio_video", 15_000, 50, 4), Settings("audio_video", 30_000, 25, 4)]
    fewer.append(Settings("audio_video", 30_000, 50, 2))
    assert all(big.estimate(less) < big.estimate(settings) for less in fewer)


def test_the_seconds_follow_what_was_measured(runner: BorrowedRunner, tmp_path: Path) -> None:
    asked = task(runner, tmp_path)
    assert runner.seconds(asked) == LEAST_SECONDS
    long = task(runner, tmp_path, seconds=2.0, num_inference_steps=500)
    before = runner.seconds(long)
    request = asked.request
    assert request.num_frames is not None
    from nava_core.engine.estimates import settings_of

    assert runner._spec is not None
    runner._history.append(RunTimes(settings_of(asked.request, runner._spec), encode=1.0, step=2.0, decode=3.0))
    assert runner.seconds(asked) == max(LEAST_SECONDS, -int(-MARGIN * (10 + 1 + 3 * 2 + 3) // 1))
    assert runner.seconds(long) > MARGIN * 500 * 2 > before
    plain = task(runner, tmp_path, num_inference_steps=500, guidance=Guidance(align=False))
    guided = task(runner, tmp_path, num_inference_steps=500)
    assert runner.seconds(plain) <= runner.seconds(guided)


def test_without_a_lender_nothing_changes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "spaces", Lender())
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert lender() is None
    assert isinstance(app._make_runner(app.parse_arguments(["--in-process"])), InProcessRunner)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert isinstance(app._make_runner(app.parse_arguments([])), BorrowedRunner)
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert lender() is None and "not installed" in caplog.text


# Publishing


@pytest.fixture(scope="module")
def publish_space() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish_space", ROOT / "scripts" / "publish_space.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_lists_what_the_app_needs_and_nothing_else(
    publish_space: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert publish_space.main(["someone/studio", "--dry-run"]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    sizes = {line.split(maxsplit=1)[1]: int(line.split()[0].replace(",", "")) for line in lines}
    for name in ("app.py", "README.md", "requirements.txt", "ui/texts/studio.yaml", "nava_core/engine/borrowed.py"):
        assert sizes[name] > 0, name
    assert any(name.startswith("assets/nava-nano/") for name in sizes) and "configs/nava.yaml" in sizes
    tops = {name.split("/")[0] for name in sizes}
    assert not tops & {"tests", "training", "scripts", "docs", "runs", "outputs", ".git", ".ci", ".venv"}
    assert not [name for name in sizes if "__pycache__" in name or "/." in name or name.startswith(".")]
    assert f"{sum(sizes.values()):,}" in total and f"{len(sizes)} files" in total and "someone/studio" in total


def test_private_things_and_links_stay_at_home(publish_space: ModuleType, tmp_path: Path) -> None:
    for name in ("app.py", "ui/page.py", "ui/.env", "ui/__pycache__/page.pyc", "outputs/clip.mp4", "secret.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "ui" / "link.py").symlink_to(tmp_path / "secret.txt")
    assert set(publish_space.shipped_files(tmp_path)) - set(publish_space.OWN) == {"app.py", "ui/page.py"}


def test_publishing_uploads_one_folder_under_the_names_of_a_space(publish_space: ModuleType, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repo_id: str, **given: Any) -> None:
            calls.append(("create", {"repo_id": repo_id, **given}))

        def upload_folder(self, *, folder_path: str, **given: Any) -> None:
            found = {
                path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()
            }
            calls.append(("upload", {"files": found, **given}))

    (tmp_path / "app.py").write_text("x")
    files = publish_space.shipped_files(tmp_path)
    address = publish_space.publish(Hub(), "someone/studio", files, private=False, message="Why")
    assert address == "https://huggingface.co/spaces/someone/studio"
    (_, created), (_, sent) = calls
    assert created["repo_type"] == sent["repo_type"] == "space" and created["space_sdk"] == "gradio"
    assert sent["files"] == {"app.py", *publish_space.OWN} and sent["commit_message"] == "Why"


def test_a_token_comes_from_the_environment_alone(
    publish_space: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in publish_space.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert publish_space.main(["someone/studio"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    for bad in ("studio", "a/b/c", "../x"):
        with pytest.raises(SystemExit):
            publish_space.main([bad, "--dry-run"])


def test_the_front_matter_is_what_a_space_wants() -> None:
    text = (ROOT / "scripts" / "space" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    wanted = re.search(r"^gradio\[mcp\]>=([\d.]+),<(\d+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert wanted is not None
    version = tuple(map(int, front["sdk_version"].split(".")))
    assert tuple(map(int, wanted[1].split("."))) <= version < (int(wanted[2]),)
    assert re.fullmatch(r"3\.\d+", front["python_version"]) and len(front["short_description"]) <= 60
