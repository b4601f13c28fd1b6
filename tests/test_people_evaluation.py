"""Speech in shots, and the measures and the evaluation of people, on the world's own clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from perfect import PerfectPipeline

from training import evaluate_people, scores_people, shots, speaking
from training.lexicon import WORDS
from training.voices import Voice, VoiceBank

SAMPLES = 16_000


@pytest.fixture(scope="module")
def bank() -> VoiceBank:
    """A woman's and a man's voice of each split: buzzes whose loudness makes one or two syllables a word."""
    voices, words = [], {}
    for split in ("train", "held_out"):
        for sex, pitch in (("f", 210.0), ("m", 120.0)):
            voice = Voice(f"{split}-{sex}", sex, sex, pitch, 1.0, split)
            voices.append(voice)
            words[voice.name] = {word: _word(number, pitch) for number, word in enumerate(WORDS)}
    return VoiceBank(voices, words)


def _word(number: int, pitch: float) -> np.ndarray:
    seconds = 0.28 + 0.02 * (number % 7)
    time = np.arange(int(seconds * SAMPLES)) / SAMPLES
    syllables = np.abs(np.sin(np.pi * time / seconds * (1 + number % 2))) ** 0.7
    buzz = np.sum([np.sin(2 * np.pi * pitch * part * time) / part for part in range(1, 12)], axis=0)
    return (0.15 * syllables * buzz).astype(np.float32)


def spoken(bank: VoiceBank, kind: str, seed: int) -> shots.Shot:
    rng = np.random.default_rng(seed)
    return speaking.give_voices(shots.sample_shot(rng, kind, "all"), bank, rng)


@pytest.mark.parametrize("kind", ["talk", "pair"])
def test_speech_fits_into_the_clip_in_turns_and_in_voices_of_the_right_sex(bank: VoiceBank, kind: str) -> None:
    first = set()
    for seed in range(24):
        shot = spoken(bank, kind, seed)
        order = shots.speakers(shot)
        first.add(order[0])
        end = 0.0
        for number in order:
            person = shot.people[number]
            assert bank.voice(person.voice).sex == person.sex and person.start > end
            end = person.start + speaking.utterance(person, bank).seconds
        assert end <= shot.seconds
        openings = speaking.openings(shot, bank)
        assert all(opening.max() > 0.5 and opening.min() == 0 for opening in openings)
        assert np.array_equal(openings[0], speaking.openings(shot, bank)[0])
    assert first == set(range(2 if kind == "pair" else 1))


def test_speech_that_cannot_fit_is_an_error(bank: VoiceBank) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="make the shot longer"):
        speaking.give_voices(replace(shots.sample_shot(rng, "pair"), seconds=0.5), bank, rng)


def outcomes(bank: VoiceBank, kind: str, count: int) -> tuple[list[scores_people.Outcome], list[np.ndarray]]:
    made, sounds = [], []
    for seed in range(count):
        shot = spoken(bank, kind, seed)
        frames = shots.render_frames(shot, speaking.openings(shot, bank))
        sounds.append(speaking.render_sound(shot, bank))
        clip = scores_people.measure_people_clip(frames, sounds[-1], 24, 48_000)
        made.append(scores_people.Outcome(shot, clip, 1.0))
    return made, sounds


@pytest.mark.parametrize("kind", ["talk", "pair"])
def test_own_sound_fits_the_mouths_and_anothers_does_not(bank: VoiceBank, kind: str) -> None:
    made, sounds = outcomes(bank, kind, 6)
    own = scores_people.score(made)
    for name in (
        "people",
        "hair",
        "clothes",
        "skin",
        "side",
        "camera",
        "mouth follows",
        "sync 60ms",
        "stereo",
        "order",
    ):
        assert own[name] == 1.0, name
    assert own["mouth"] > 0.95 and own["start error"] < 0.08
    others = scores_people.score(scores_people.shuffled(made, sounds, 24, 48_000))
    assert others["mouth"] < 0.6 and others["sync 60ms"] < 0.6
    swapped = [
        replace(outcome, clip=scores_people.measure_people_clip(_frames(outcome, bank), sound[::-1], 24, 48_000))
        for outcome, sound in zip(made[:3], sounds, strict=False)
    ]
    sided = [outcome for outcome in swapped if outcome.shot.people[0].column != "centre"]
    assert not any(scores_people.SHARES["stereo"](outcome) for outcome in sided)


def _frames(outcome: scores_people.Outcome, bank: VoiceBank) -> np.ndarray:
    return shots.render_frames(outcome.shot, speaking.openings(outcome.shot, bank))


def test_silence_and_an_empty_picture_score_nothing(bank: VoiceBank) -> None:
    shot = spoken(bank, "talk", 0)
    clip = scores_people.measure_people_clip(np.full((49, 64, 64, 3), 90, np.uint8), np.zeros((2, 98_000)), 24, 48_000)
    values = scores_people.score([scores_people.Outcome(shot, clip, 1.0)])
    assert all(values[name] == 0 for name in ("people", "hair", "clothes", "mouth follows", "sync 60ms", "stereo"))
    with pytest.raises(ValueError, match="at least one"):
        scores_people.score([])


def test_a_perfect_model_scores_full(
    bank: VoiceBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["talk", "image", "pair", "no_guidance"]
    table = evaluate_people.ROWS | evaluate_people.FLOORS
    cases = [case for name in rows for case in evaluate_people.make_cases(bank, 3, table[name], "square")]
    pipeline = PerfectPipeline(cases, bank)
    monkeypatch.setattr(evaluate_people, "load_pipeline", lambda source: pipeline)
    bank.save(tmp_path / "voices.npz")
    arguments = ["--voices", str(tmp_path / "voices.npz"), "--clips", "3", "--rows", *rows]
    report = tmp_path / "report.json"
    evaluate_people.main([*arguments, "--out", str(report), "--sheet", str(tmp_path / "sheets")])
    values = json.loads(report.read_text(encoding="utf-8"))["rows"]
    for name in ("talk", "image", "pair"):
        for share in scores_people.SHARES:
            assert values[name][share] == 1.0, (name, share)
    assert values["no_guidance"]["mouth follows"] == 0 and values["shuffled"]["mouth"] < values["talk"]["mouth"] - 0.3
    assert sum(call.get("image") is not None for call in pipeline.calls) == 3
    assert [len(call.get("speakers", ())) for call in pipeline.calls] == [1] * 6 + [2] * 3 + [0] * 3
    assert (tmp_path / "sheets" / "pair.png").stat().st_size > 0
    assert "two people" in capsys.readouterr().out
