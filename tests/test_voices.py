"""The voice library and its checks of recordings."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nava_core.engine.jobs import EngineError
from nava_core.request import RequestError
from ui.library import voices as voices_module
from ui.library.recordings import Recording, check, peaks, read_recording
from ui.library.voices import COLOURS, DATABASE, VoiceLibrary, voice_id_of

RATE = 16_000


def speech(seconds: float = 5.0, level: float = 0.2, noise: float = 0.0003, rate: int = RATE) -> np.ndarray:
    """Something with the level of speech: half a second of tone, a pause, and again, over a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    voiced = np.sin(2 * np.pi * 180 * time) * (time % 0.7 < 0.5)
    return (level * voiced + np.random.default_rng(0).normal(size=len(time)) * noise).astype(np.float32)


def codes(samples: np.ndarray, rate: int = RATE) -> list[str]:
    return [finding.code for finding in check(Recording(samples, rate))]


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "ann.wav", speech(), RATE)
    return tmp_path / "ann.wav"


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices")


# Recordings


def test_a_clean_recording_is_left_in_peace() -> None:
    assert codes(speech()) == []


@pytest.mark.parametrize(
    ("samples", "rate", "code"),
    [
        (speech(0.6), RATE, "short"),
        (speech(31), RATE, "long"),
        (speech(5, level=0, noise=0.0002), RATE, "silent"),
        (speech(2), RATE, "brief"),
        (speech(20), RATE, "lengthy"),
        (np.clip(speech(5, level=3), -1, 1), RATE, "clipped"),
        (speech(5, level=0.01, noise=0.00001), RATE, "quiet"),
        (np.concatenate([speech(1), np.zeros(4 * RATE, np.float32)]), RATE, "pauses"),
        (speech(5, noise=0.05), RATE, "noisy"),
        (speech(5, rate=8_000), 8_000, "narrow"),
    ],
)
def test_what_is_wrong_with_a_recording(samples: np.ndarray, rate: int, code: str) -> None:
    findings = {finding.code: finding for finding in check(Recording(samples, rate))}
    assert code in findings
    assert findings[code].serious == (code in ("short", "long", "silent"))


def test_peaks_are_the_recordings_outline() -> None:
    samples = np.concatenate([np.full(100, 0.5), np.full(100, -0.25)]).astype(np.float32)
    assert peaks(Recording(samples, RATE), 4) == (0.5, 0.5, 0.25, 0.25)
    assert len(peaks(Recording(samples[:3], RATE), 10)) == 10


def test_channels_become_one_and_high_rates_less(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wide.flac", np.stack([speech(2, rate=96_000)] * 2, axis=1), 96_000)
    recording = read_recording(tmp_path / "wide.flac")
    assert recording.rate == 48_000 and recording.samples.ndim == 1 and abs(recording.seconds - 2) < 0.01


@pytest.mark.parametrize("content", [b"", b"RIFF no sound", b"\x00" * 5000])
def test_a_file_that_is_no_sound(library: VoiceLibrary, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"voice\.wav cannot be read") as refused:
        library.add("", path, "Ann", consent=True)
    assert refused.value.field == "voice"


# The library


def test_a_voice_is_kept_until_it_is_deleted(library: VoiceLibrary, wav: Path, tmp_path: Path) -> None:
    ann = library.add("me", wav, "  Ann \n Lee ", consent=True)
    wav.unlink()
    assert (ann.name, ann.colour, ann.seconds, ann.rate, ann.notes) == ("Ann Lee", 1, 5.0, RATE, ())
    assert soundfile.info(ann.path).duration == 5.0 and ann.consent > 0 and voice_id_of(ann.path) == ann.id
    library.close()
    again = VoiceLibrary(tmp_path / "voices")
    assert again.list("me") == [ann] and again.get("me", ann.id) == ann
    again.delete("me", ann.id)
    assert again.list("me") == []
    assert again.undelete("me", ann.id) == ann
    again.delete("me", ann.id)
    again.close()
    assert VoiceLibrary(tmp_path / "voices").undelete("me", ann.id).path.is_file()


def test_long_deleted_voices_leave_nothing(library: VoiceLibrary, wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.delete("", library.add("", wav, "Ann", consent=True).id)
    kept = library.add("", wav, "Ben", consent=True)
    (library.folder / "torn.wav.part").write_bytes(b"RIFF")
    library.close()
    monkeypatch.setattr(voices_module, "UNDO_SECONDS", -1.0)
    assert library.list("") == [kept]
    assert {path.name.partition(".")[0] for path in library.folder.iterdir()} == {kept.id, "voices"}


def test_owners_do_not_see_one_another(library: VoiceLibrary, wav: Path) -> None:
    ann = library.add("me", wav, "Ann", consent=True)
    assert library.list("you") == []
    for ask in (library.get, library.delete, library.undelete):
        with pytest.raises(RequestError):
            ask("you", ann.id)
    with pytest.raises(RequestError):
        library.rename("you", ann.id, "Mine")
    library.set_embedding("you", ann.id, np.ones(192), "model", ann.path)
    assert library.list("me") == [ann] and library.get("me", ann.id).embedding is None


def test_names_colours_and_consent(library: VoiceLibrary, wav: Path) -> None:
    with pytest.raises(RequestError, match="consent"):
        library.add("", wav, "Ann")
    voices = [library.add("", wav, f"Voice {number}", consent=True) for number in range(3)]
    assert [voice.colour for voice in voices] == [1, 2, 3]
    assert library.recolour("", voices[0].id, 8).colour == 8
    assert library.add("", wav, "Next", consent=True).colour == 1
    assert library.rename("", voices[0].id, "<b>Ann</b>").name == "<b>Ann</b>"
    for name in ("", "  ", "x" * 61):
        with pytest.raises(RequestError, match="name"):
            library.rename("", voices[0].id, name)
    for colour in (0, COLOURS + 1, True, "2"):
        with pytest.raises(RequestError, match="colour"):
            library.recolour("", voices[0].id, colour)  # type: ignore[arg-type]


def test_a_cut_can_be_made_again_from_the_whole_recording(library: VoiceLibrary, wav: Path) -> None:
    ann = library.add("", wav, "Ann", 1.0, 4.5, consent=True)
    assert (ann.start, ann.end, ann.length) == (1.0, 4.5, 5.0)
    library.set_embedding("", ann.id, np.ones(192), "model", ann.path)
    assert library.get("", ann.id).embedding is not None
    cut = library.trim("", ann.id, 0.0, 2.0)
    assert soundfile.info(cut.path).duration == 2.0 and cut.embedding is None
    assert [note.code for note in cut.notes] == ["brief"] and not ann.path.exists()
    library.set_embedding("", ann.id, np.ones(192), "model", ann.path)  # heard before it was cut
    assert library.get("", ann.id).embedding is None
    for start, end in ((0.0, 0.5), (3.0, 2.0), (-1.0, 3.0), (0.0, 9.0), ("0", 3.0), (0.0, float("nan"))):
        with pytest.raises(RequestError):
            library.trim("", ann.id, start, end)  # type: ignore[arg-type]
    assert library.get("", ann.id) == cut and cut.path.is_file()


def test_of_a_long_recording_the_beginning_is_taken_and_another_part_can_be(
    library: VoiceLibrary, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "long.wav", speech(40), RATE)
    voice = library.add("", tmp_path / "long.wav", "Ann", consent=True)
    assert (voice.start, voice.end, voice.length) == (0.0, 30.0, 40.0)
    assert [note.code for note in voice.notes] == ["lengthy"]
    assert library.trim("", voice.id, 32.0, 40.0).seconds == 8.0
    soundfile.write(tmp_path / "hour.wav", np.zeros(301 * 8_000, np.float32), 8_000)
    with pytest.raises(RequestError, match="301 s long"):
        library.add("", tmp_path / "hour.wav", "Ann", consent=True)


def test_likeness_is_of_one_encoder(library: VoiceLibrary, wav: Path) -> None:
    ids = [library.add("", wav, name, consent=True) for name in ("Ann", "Ben")]
    one, other = np.eye(192)[0], np.eye(192)[0] + np.eye(192)[1]
    library.set_embedding("", ids[0].id, one, "model", ids[0].path)
    library.set_embedding("", ids[1].id, other, "model", ids[1].path)
    ann, ben = library.list("")
    likeness = ann.likeness(ben)
    assert likeness is not None and abs(likeness - 0.5**0.5) < 1e-6
    library.set_embedding("", ids[1].id, other, "another model", ids[1].path)
    assert library.list("")[1].likeness(ann) is None
    with pytest.raises(RequestError):
        library.set_embedding("", ann.id, np.full(192, np.nan), "model", ann.path)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"this is no database at all, but long enough to be looked at" * 50)
    with pytest.raises(EngineError, match="cannot be used"):
        VoiceLibrary(tmp_path).list("")


@pytest.mark.skipif(sys.platform != "linux", reason="forks this process")
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("place, name", [(soundfile, "write"), (os, "fsync"), (Path, "replace"), (Path, "unlink")])
def test_kill_9_in_the_middle_of_writing(tmp_path: Path, wav: Path, place: Any, name: str, at: int) -> None:
    """In another process, which dies at the given call; afterwards each voice is whole."""

    def work() -> None:
        library = VoiceLibrary(tmp_path / "voices")
        ann = library.add("", wav, "Ann", consent=True)
        real, calls = getattr(place, name), itertools.count(1)

        def die(*arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(place, name, die)
        library.trim("", ann.id, 1.0, 4.0)
        library.add("", wav, "Ben", consent=True)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    library = VoiceLibrary(tmp_path / "voices")
    voices = library.list("")
    assert voices and voices[0].name == "Ann" and voices[0].seconds in (3.0, 5.0)
    for voice in voices:
        assert abs(soundfile.info(voice.path).duration - voice.seconds) < 1e-6
        assert library.trim("", voice.id, 0.5, 4.5).seconds == 4.0
    with sqlite3.connect(library.folder / DATABASE) as database:
        named = {name for row in database.execute("SELECT file, recording FROM voices") for name in row}
    assert {path.name for path in library.folder.glob("*.wav*")} == named
