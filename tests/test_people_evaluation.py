"""Speech in shots, and the measures and the evaluation of people, on the world's own clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from perfect import PerfectPipeline, recoloured

from nava_core.guidance import Pass, plan_guidance
from training import common, evaluate, evaluate_people, evaluate_roll, scores_people, shots, speaking, watch
from training.evaluation import GUIDANCE_OFF
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


# Outside of tours no camera moves, so that nobody is asked what it does.
UNASKED = {"camera still", "camera moves"}


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
    unasked = UNASKED | ({"order"} if kind == "talk" else set())
    for name in scores_people.SHARES:
        assert np.isnan(own[name]) if name in unasked else own[name] == 1.0, name
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


def test_what_the_last_third_forgets_is_not_carried_on(bank: VoiceBank) -> None:
    for kind in ("talk", "pair"):
        shot = spoken(bank, kind, 1)
        openings = speaking.openings(shot, bank)
        drawn = shots.render_frames(shot, openings)
        people = [replace(person, hair="blond" if person.hair != "blond" else "black") for person in shot.people]
        others = (
            shots.render_frames(recoloured(shot), openings),
            shots.render_frames(replace(shot, people=tuple(people)), openings),
            shots.render_frames(replace(shot, people=()), ()),
            np.roll(drawn, 10, axis=2),
        )
        assert carried(shot, drawn) == 1
        for other in others:
            assert carried(shot, np.concatenate([drawn[:33], other[33:]])) == 0


def carried(shot: shots.Shot, frames: np.ndarray) -> float:
    clip = scores_people.measure_people_clip(frames, np.zeros((2, 98_000)), 24, 48_000)
    return scores_people.score([scores_people.Outcome(shot, clip, 1.0)])["carried"]


def test_the_order_is_of_mouths_that_open(bank: VoiceBank) -> None:
    shot = spoken(bank, "pair", 0)
    sound, openings = speaking.render_sound(shot, bank), speaking.openings(shot, bank)
    first = shots.speakers(shot)[0]
    shut, together = [0 * opening for opening in openings], [openings[first]] * 2
    for mouths, expected in ((openings, first), (openings[::-1], 1 - first), (shut, None), (together, None)):
        clip = scores_people.measure_people_clip(shots.render_frames(shot, mouths), sound, 24, 48_000)
        assert clip.speech.first == expected
        assert scores_people.score([scores_people.Outcome(shot, clip, 1.0)])["order"] == (expected == first)


def test_what_a_camera_does_is_asked_of_tours(bank: VoiceBank) -> None:
    shot = replace(spoken(bank, "talk", 2), kind="tour", panels=True)
    clips = {}
    for move in ("still", "pan left"):
        frames = shots.render_frames(replace(shot, camera=move), speaking.openings(shot, bank))
        clips[move] = scores_people.measure_people_clip(frames, speaking.render_sound(shot, bank), 24, 48_000)
    still, pan = (
        [scores_people.Outcome(replace(shot, camera=move), clips[seen], 1.0) for seen in clips] for move in clips
    )
    values = scores_people.score(still)
    assert values["camera still"] == 0.5 and np.isnan(values["camera moves"]) and values["side"] >= 0.5
    values = scores_people.score(pan)
    assert values["camera moves"] == 0.5 and np.isnan(values["camera still"])
    assert np.isnan(values["side"]) and np.isnan(values["carried"])
    assert scores_people.score([*still, *pan])["camera moves"] == 0.5


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
    rows = ["talk", "image", "pair", "no_guidance", "talk_unvoiced"]
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
            unasked = share in UNASKED or (share == "order" and name != "pair")
            assert values[name][share] == (None if unasked else 1.0), (name, share)
    assert values["no_guidance"]["mouth follows"] == 0 and values["shuffled"]["mouth"] < values["talk"]["mouth"] - 0.3
    assert sum(call.get("image") is not None for call in pipeline.calls) == 3
    assert [len(call.get("speakers", ())) for call in pipeline.calls] == [1] * 6 + [2] * 3 + [1] * 3 + [0] * 3
    assert {call["guidance"] for call in pipeline.calls[9:12]} == {GUIDANCE_OFF}
    assert (tmp_path / "sheets" / "pair.png").stat().st_size > 0
    table = capsys.readouterr().out
    assert all(evaluate_people.TABLE.titles[name] in table for name in rows) and "nan" not in table


def test_guidance_that_is_off_runs_one_pass_for_each_stream() -> None:
    assert plan_guidance(GUIDANCE_OFF, "audio_video", has_references=True).passes == (Pass.CONDITIONAL,)


def test_a_model_that_forgets_looks_does_not_carry_them_on(bank: VoiceBank) -> None:
    cases = evaluate_people.make_cases(bank, 1, evaluate_people.ROWS["image"], "square")
    forgetful = PerfectPipeline(cases, bank, forgets=True)
    (result,) = evaluate_people.evaluate(forgetful, bank, ["image"], 1, evaluate_people.Listeners())
    assert result.rows["image"]["carried"] == 0 and result.rows["image"]["side"] == 1


def test_tours_are_of_every_length_that_the_model_makes(bank: VoiceBank) -> None:
    row = evaluate_people.ROWS["tour"]
    cases = evaluate_people.make_cases(bank, 6, row, lengths=shots.LENGTHS)
    assert {case.shot.seconds for case in cases} == {2.0, 3.0, 4.0}
    pipeline = PerfectPipeline(cases, bank)
    pipeline.spec = SimpleNamespace(**{**vars(pipeline.spec), "sizes": tuple(shots.SIZES.values()), "max_seconds": 4.0})
    (result,) = evaluate_people.evaluate(pipeline, bank, ["tour"], 6, evaluate_people.Listeners())
    assert [call["seconds"] for call in pipeline.calls] == [case.shot.seconds for case in cases]
    for share in scores_people.SHARES:
        assert np.isnan(result.rows["tour"][share]) or result.rows["tour"][share] == 1.0, share
    assert result.rows["tour"]["camera moves"] == 1.0


def test_a_run_is_watched_by_its_curves_and_by_clips_of_each_kind(bank: VoiceBank, tmp_path: Path) -> None:
    log = common.MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="no rows yet"):
        watch.curves(log)
    log.write(50, audio=0.5)
    log.write(100, audio=0.4, video=0.3)
    one = watch.line_chart("audio", [50], {"": [0.5]})
    assert watch.curves(log).height == 2 * one.height + 8
    row = evaluate_people.ROWS["talk"]
    cases = [*evaluate.make_cases(2, "held_out"), *evaluate_roll.make_cases(2, "held_out")]
    for kind in ("talk", "pair"):
        cases += evaluate_people.make_cases(bank, 2, replace(row, kind=kind), "square")
    sheet = watch.samples(PerfectPipeline(cases, bank), bank, 2)  # type: ignore[arg-type]
    assert sheet.height == 8 * (128 + 14 + 4)
