"""`python -m rewriter`: lines stay in their places, runs can be stopped and gone on with, failures are marked."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rewriter_server import Behaviour, obedient, serving

from nava_core.batch import BadLine, BatchLine, read_batch
from nava_core.speech import parse_speech
from rewriter.__main__ import main

ROOT = Path(__file__).parent.parent


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def rewrite(source: Path, output: Path, *options: str) -> int:
    return main(["--input", str(source), "--output", str(output), *options])


def test_a_text_file_line_for_line(tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.txt", tmp_path / "out" / "captions.txt"
    source.write_bytes("\ufeffa red ball falls\n\n  She says ~~Hi\u2028there~~\r\n\n绿色星星".encode())
    assert rewrite(source, output, "--backend", "offline") == 0
    lines = output.read_bytes().decode().split("\n")
    assert [bool(line) for line in lines] == [True, False, True, False, True, False]
    before, after = read_batch(source), read_batch(output)
    assert [line.index for line in after] == [line.index for line in before] == [0, 2, 4]
    for old, new in zip(before, after, strict=True):
        assert isinstance(old, BatchLine)
        assert isinstance(new, BatchLine)
        assert parse_speech(new.prompt).spans[:1] == () or parse_speech(new.prompt).spans[0].text == "Hi\u2028there"
        assert len(parse_speech(new.prompt).spans) == len(parse_speech(old.prompt).spans)
    assert "红色圆球" in lines[0]


def test_a_jsonl_file_carries_everything_else_through(tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "captions.jsonl"
    (tmp_path / "anna.wav").touch()
    items = [
        {"prompt": "She says ~~Hi~~", "spk_wavs": ["anna.wav"], "image_path": None, "take": 3, "nested": {"a": [1.5]}},
        {"text": "a red ball"},
        {"prompt": "~~Hello~~Hi there", "spk_wavs": ["anna.wav", "None"]},
        {"prompt": "~~one\u2028two\nthree~~ 他说", "original_prompt": "the very first"},
    ]
    source.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    assert rewrite(source, output, "--backend", "offline") == 0
    rows = rows_of(output)
    assert {key: rows[0][key] for key in ("spk_wavs", "image_path", "take", "nested")} == {
        key: items[0][key] for key in ("spk_wavs", "image_path", "take", "nested")
    }
    assert [row["original_prompt"] for row in rows[:3]] == ["She says ~~Hi~~", "a red ball", "~~Hello~~Hi there"]
    assert rows[3]["original_prompt"] == "the very first"
    assert "红色圆球" in rows[1]["text"]
    assert "prompt" not in rows[1]
    lines = read_batch(output)
    assert all(isinstance(line, BatchLine) for line in lines)
    spans = [[span.text for span in parse_speech(line.prompt).spans] for line in lines if isinstance(line, BatchLine)]
    assert spans == [["Hi"], [], ["Hello", "Hi there"], ["one\u2028two\nthree"]]
    assert [len(line.speakers) for line in lines if isinstance(line, BatchLine)] == [1, 0, 2, 0]
    assert all(line.unknown_keys in ((), ("nested", "take")) for line in lines if isinstance(line, BatchLine))


def test_files_that_would_not_be_found_from_the_output_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "prompts.jsonl"
    (tmp_path / "anna.wav").touch()
    source.write_text(json.dumps({"prompt": "She says ~~Hi~~", "spk_wavs": ["anna.wav"]}), encoding="utf-8")
    assert rewrite(source, tmp_path / "captions.jsonl", "--backend", "offline") == 0
    assert "will not find it" not in caplog.text
    assert rewrite(source, tmp_path / "out" / "captions.jsonl", "--backend", "offline") == 0
    assert "line 1 names anna.wav, which stands beside prompts.jsonl" in caplog.text


def test_a_text_file_may_become_jsonl(tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.txt", tmp_path / "captions.jsonl"
    source.write_text("a red ball\n\na dog\n")
    assert rewrite(source, output, "--backend", "offline") == 0
    lines = output.read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0])["original_prompt"] == "a red ball"
    assert lines[1] == ""
    assert [line.index for line in read_batch(output)] == [0, 2]


def test_failed_lines_are_marked_counted_and_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "captions.jsonl"
    prompts = [{"prompt": f"scene {number} ~~line {number}~~"} for number in range(6)]
    lines = [json.dumps(item) for item in prompts] + ["{not json", json.dumps({"prompt": "a", "spk_wavs": ["x", "y"]})]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    behaviour = Behaviour(failures=[None, None, None, 400])
    with serving(behaviour) as url:
        assert rewrite(source, output, "--backend", "vllm", "--base-url", url, "--concurrency", "1") == 1
        rows = rows_of(output)
        assert len(rows) == 8
        assert [index for index, row in enumerate(rows) if "rewrite_error" in row] == [3, 6, 7]
        assert rows[3]["prompt"] == prompts[3]["prompt"]
        assert "refused the prompt" in rows[3]["rewrite_error"]
        assert rows[6]["line"] == "{not json"
        assert "2 voice references for 0 speech spans" in rows[7]["rewrite_error"]
        assert "5 captions, 3 lines failed: lines 4, 7, 8" in caplog.text
        assert len(behaviour.requests) == 6
        source.write_text("\n".join(lines[:6]), encoding="utf-8")
        assert rewrite(source, output, "--backend", "vllm", "--base-url", url) == 0
        assert len(behaviour.requests) == 7  # only what had failed
    rows = rows_of(output)
    for number, row in enumerate(rows):
        assert [span.text for span in parse_speech(row["prompt"]).spans] == [f"line {number}"]
        assert "rewrite_error" not in row
    record = rows_of(tmp_path / "captions.jsonl.rows.jsonl")
    assert {row["outcome"] for row in record if "caption" in row} == {"as is"}
    assert [row["line"] for row in record if "error" in row] == [4]
    for line in read_batch(output):
        assert not isinstance(line, BadLine)


def test_a_server_that_goes_away_ends_the_run_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.backends.server.TRIES", 1)
    monkeypatch.setattr("rewriter.backends.server.FIRST_WAIT", 0.01)
    source, output = tmp_path / "prompts.txt", tmp_path / "captions.txt"
    source.write_text("\n".join(f"scene {number}" for number in range(40)))
    answered = []

    def reply(messages: list[dict[str, str]]) -> str:
        answered.append(1)
        return obedient(messages)

    behaviour = Behaviour(reply=reply, failures=[None, None, *[401] * 40])
    with serving(behaviour) as url:
        assert rewrite(source, output, "--backend", "vllm", "--base-url", url, "--concurrency", "2") == 1
    assert len(behaviour.requests) <= 4
    lines = output.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 40
    assert sum(not line.startswith("scene") for line in lines) == len(answered) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "none.txt", "--output", "o.txt"], "--input none.txt is no file"),
        (["--input", "empty.txt", "--output", "o.txt"], "holds no prompt"),
        (["--input", "p.jsonl", "--output", "o.txt"], "would lose what p.jsonl holds beside its prompts"),
        (["--input", "p.txt", "--output", "p.txt"], "is the input itself"),
        (["--input", "p.txt", "--output", "folder"], "is a folder"),
        (["--input", "p.txt", "--output", "other.txt"], "exists and was not made by this command"),
        (["--input", "p.txt", "--output", "o.txt", "--concurrency", "0"], "--concurrency is 0"),
        (["--input", "p.txt", "--output", "o.txt", "--backend", "vllm", "--base-url", "nowhere"], "give one like http"),
    ],
)
def test_what_cannot_be_run(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a red ball")
    Path("p.jsonl").write_text('{"prompt": "a red ball"}')
    Path("empty.txt").write_text("\n \n")
    Path("other.txt").write_text("somebody's work")
    Path("folder").mkdir()
    assert main([*options, *([] if "--backend" in options else ["--backend", "offline"])]) == 2
    assert message in capsys.readouterr().err
    assert Path("other.txt").read_text() == "somebody's work"
    assert not Path("o.txt").exists()


def test_no_server_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "p.txt").write_text("a red ball")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        assert rewrite(tmp_path / "p.txt", tmp_path / "o.txt", "--backend", "vllm", "--base-url", url) == 2
    assert "scripts/start_rewriter.sh" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "p.txt").write_text("a red ball\na dog")
    (tmp_path / "config.json").write_text("{}")
    options = ["--backend", "transformers", "--model", str(tmp_path), "--device", "cpu"]
    assert rewrite(tmp_path / "p.txt", tmp_path / "o.txt", *options) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert rewrite(tmp_path / "p.txt", tmp_path / "o.txt", "--backend", "offline") == 0


def heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so do its children: not these."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    source, output = tmp_path / "prompts.txt", tmp_path / "captions.txt"
    scenes = [f"scene {number}" for number in range(8)]
    source.write_text("\n".join(scenes))
    stopped = threading.Event()

    def reply(messages: list[dict[str, str]]) -> str:
        if not any(scene in messages[-1]["content"] for scene in scenes[:2]):
            stopped.wait()
        return obedient(messages)

    behaviour = Behaviour(reply=reply)
    command = [sys.executable, "-m", "rewriter", "--input", source, "--output", output, "--backend", "vllm"]
    record = tmp_path / "captions.txt.rows.jsonl"
    with serving(behaviour) as url:
        process = subprocess.Popen(
            [*command, "--base-url", url], cwd=ROOT, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts
        )
        try:
            while not record.exists() or record.read_bytes().count(b"\n") < 2:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(how)
            assert process.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        assert output.exists() == (how == signal.SIGINT)
        if how == signal.SIGINT:
            written = output.read_text(encoding="utf-8").splitlines()
            assert len(written) == 8
            assert written[7] == "scene 7"
        with record.open("a") as file:
            file.write('{"line": 3, "prompt_sha')  # cut off in the middle
        assert record.read_bytes().count(b"\n") == 2
        asked = len(behaviour.requests)
        stopped.set()
        finished = subprocess.run([*command, "--base-url", url], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "2 done already" in finished.stderr
        asked_again = "".join(request["messages"][-1]["content"] for request in behaviour.requests[asked:])
        assert [scene in asked_again for scene in scenes] == [False] * 2 + [True] * 6
    assert len(output.read_text(encoding="utf-8").splitlines()) == 8
    assert finished.stdout == ""
