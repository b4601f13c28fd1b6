"""Whose voice a clip speaks in, and the curves of guidance, on the world's own clips and a comb for an encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from perfect import PerfectPipeline
from PIL import Image

from nava_core import Guidance, ReDimNetSpeakerEncoder
from nava_core.pipeline import NavaPipelineOutput
from training import (
    evaluate,
    evaluate_people,
    evaluate_sound,
    guidance_curves,
    likeness,
    shots,
    speaking,
    timbre,
    world,
)
from training.evaluation import Case, Clip
from training.lexicon import WORDS
from training.sheet import line_chart
from training.voices import Voice, VoiceBank

RATE = 16_000
PITCHES = {"f": (190.0, 210.0), "m": (112.0, 124.0)}


@pytest.fixture(scope="module")
def bank() -> VoiceBank:
    """Two bases for each sex and split, of like pitch but for the men held out of the training."""
    voices, words = [], {}
    for split in ("train", "held_out"):
        for sex, pitches in PITCHES.items():
            for number, pitch in enumerate(pitches):
                high = 1.3 if split == "held_out" and sex == "m" and number else 1.07 if split == "held_out" else 1.0
                voice = Voice(f"{split}-{sex}{number}", f"{sex}{number}", sex, pitch * high, 1.0, split)
                voices.append(voice)
                words[voice.name] = {word: _word(index, voice.pitch) for index, word in enumerate(WORDS)}
    return VoiceBank(voices, words)


def _word(number: int, pitch: float) -> np.ndarray:
    seconds = 0.28 + 0.02 * (number % 7)
    time = np.arange(int(seconds * RATE)) / RATE
    buzz = np.sum([np.sin(2 * np.pi * pitch * part * time) / part for part in range(1, 12)], axis=0)
    return (0.15 * np.sin(np.pi * time / seconds) ** 0.7 * buzz).astype(np.float32)


def comb(audio: np.ndarray, rate: int) -> np.ndarray:
    """A voice by its harmonics: the mean spectrum, of norm 1."""
    sound = timbre.long_enough(audio, rate)
    pieces = np.lib.stride_tricks.sliding_window_view(sound, 2048)[::512] * np.hanning(2048)
    spectrum = np.abs(np.fft.rfft(pieces)).mean(axis=0)
    return spectrum / np.linalg.norm(spectrum)


def cases_of(bank: VoiceBank, name: str, count: int = 6) -> list[Case]:
    return evaluate_people.make_cases(bank, count, evaluate_people.ROWS[name], "square")


def heard(bank: VoiceBank, asked: list[shots.Shot], sounds: list[np.ndarray]) -> dict[str, float]:
    found = [
        likeness.clip_likeness(shot, bank, sound, 48_000, {"comb": comb})
        for shot, sound in zip(asked, sounds, strict=True)
    ]
    return likeness.likeness_shares(found) | likeness.likeness_margins(found)


def with_voices(shot: shots.Shot, *names: str) -> shots.Shot:
    people = (replace(person, voice=name) for person, name in zip(shot.people, names, strict=True))
    return replace(shot, people=tuple(people))


@pytest.mark.parametrize("name", ["talk", "talk_voices"])
def test_own_voices_are_recognised_and_those_of_others_are_not(bank: VoiceBank, name: str) -> None:
    asked = [case.shot for case in cases_of(bank, name)]
    own = heard(bank, asked, [speaking.render_sound(shot, bank) for shot in asked])
    assert own["voice comb"] == 1 and own["voice comb like"] == 1 and own["likeness comb"] > 0.2
    assert np.isnan(own["binding comb"])
    others = []
    for shot in asked:
        voice = bank.voice(shot.people[0].voice)
        (rival,) = timbre.rivals(bank, voice)["sex"]
        others.append(speaking.render_sound(with_voices(shot, rival.name), bank))
    wrong = heard(bank, asked, others)
    assert wrong["voice comb"] == wrong["voice comb like"] == 0 and wrong["likeness comb"] < own["likeness comb"] - 0.2


def test_the_sex_alone_gives_no_voice_away(bank: VoiceBank) -> None:
    asked = [case.shot for case in cases_of(bank, "talk", 16)]
    first = [with_voices(shot, f"train-{shot.people[0].sex}0") for shot in asked]
    values = heard(bank, asked, [speaking.render_sound(shot, bank) for shot in first])
    own = np.mean([shot == said for shot, said in zip(asked, first, strict=True)])
    assert 0 < own < 1 and values["voice comb"] == values["voice comb like"] == own


def test_two_voices_of_one_sex_are_bound_apart_from_those_of_two(bank: VoiceBank) -> None:
    shot = cases_of(bank, "pair", 1)[0].shot
    mixed, women, one_voice = (with_voices(shot, "train-f0", f"train-{name}") for name in ("m1", "f1", "f0"))
    sounds = [speaking.render_sound(said, bank) for said in (mixed, women, one_voice)]
    bound = heard(bank, [mixed, women], sounds[:2])
    assert bound["binding comb"] == bound["binding comb one sex"] == 1
    ignored = heard(bank, [mixed, women], [sounds[0], sounds[2]])
    assert ignored["binding comb"] == 0.5 and ignored["binding comb one sex"] == 0
    apart = heard(bank, [mixed], [sounds[0]])
    assert apart["binding comb"] == 1 and np.isnan(apart["binding comb one sex"])


def test_voices_are_bound_to_their_spans(bank: VoiceBank) -> None:
    pairs = [case.shot for case in cases_of(bank, "pair")]
    asked = [with_voices(shot, "train-f0", "train-m1") for shot in pairs]
    swapped = [with_voices(shot, "train-m1", "train-f0") for shot in pairs]
    one = [with_voices(shot, "train-f0", "train-f0") for shot in pairs]
    assert heard(bank, asked, [speaking.render_sound(shot, bank) for shot in asked])["binding comb"] == 1
    assert heard(bank, asked, [speaking.render_sound(shot, bank) for shot in swapped])["binding comb"] == 0
    assert heard(bank, asked, [speaking.render_sound(shot, bank) for shot in one])["binding comb"] == 0
    alone = heard(bank, one, [speaking.render_sound(shot, bank) for shot in one])
    assert np.isnan(alone["binding comb"]) and alone["voice comb"] == 1


@pytest.mark.parametrize("samples", [98_000, 100])
def test_silence_is_nobodys_voice(bank: VoiceBank, samples: int) -> None:
    asked = [case.shot for case in cases_of(bank, "pair", 3)]
    asked = [with_voices(shot, "train-f0", "train-m1") for shot in asked]
    noise = [2e-4 * np.random.default_rng(0).standard_normal((2, samples), np.float32) for _ in asked]
    values = heard(bank, asked, noise)
    assert [values[name] for name in ("voice comb", "voice comb like", "binding comb", "likeness comb")] == [0] * 4


def test_each_turn_to_speak_is_heard_alone_and_whole(bank: VoiceBank) -> None:
    voices = [bank.voice(name) for name in ("train-f0", "train-m1")]
    said = {voice.name: bank.reference(voice, np.random.default_rng(0), ()) for voice in voices}

    def who(sound: np.ndarray, rate: int) -> tuple[str, ...]:
        """A listener that writes down whose voice it is, and for how many seconds it listens."""
        near = {name: float(comb(sound, rate) @ comb(voice, RATE)) for name, voice in said.items()}
        return max(near, key=lambda name: near[name]), str(sound.shape[1] / rate)

    for case in cases_of(bank, "pair", 4):
        shot = with_voices(case.shot, *said)
        clip = Clip(np.zeros((49, 128, 128, 3), np.uint8), speaking.render_sound(shot, bank), 48_000)
        listeners = evaluate_people.Listeners(who)  # type: ignore[arg-type]
        outcome = evaluate_people.ask(bank, listeners).measure(replace(case, shot=shot), clip, 24, 1.0)
        assert outcome.heard is not None and outcome.heard_whole is not None
        people = [shot.people[number] for number in shots.speakers(shot)]
        assert outcome.heard[::2] == tuple(person.voice for person in people)
        pieces = [float(seconds) for seconds in outcome.heard[1::2]]
        end = people[0].start + speaking.utterance(people[0], bank).seconds
        assert end < pieces[0] < people[1].start
        assert sum(pieces) == pytest.approx(float(outcome.heard_whole[1])) == clip.audio.shape[1] / 48_000


def test_references_are_of_the_split_and_say_other_words(bank: VoiceBank) -> None:
    first = bank.voice("held_out-f0")
    assert [voice.name for voice in timbre.rivals(bank, first)["like"]] == ["held_out-f1"]
    man = timbre.rivals(bank, bank.voice("held_out-m0"))
    assert [voice.name for voice in man["sex"]] == ["held_out-m1"] and man["like"] == []
    shot = with_voices(cases_of(bank, "pair", 1)[0].shot, "held_out-m0", "held_out-f0")
    made, again = (likeness.references(shot, 0, bank) for _ in range(2))
    assert set(made) == {"own", "sex", "partner"}
    assert all(np.array_equal(made[kind], again[kind]) for kind in made)
    assert np.array_equal(made["own"], speaking.reference(shot.people[0], bank))
    assert comb(made["partner"], RATE) @ comb(bank.reference(first, np.random.default_rng(0)), RATE) > 0.9


def test_a_sound_alone_is_held_against_a_voice_of_its_sex(bank: VoiceBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_sound, "OurEncoder", lambda model: comb)
    pipeline, (case,) = SimpleNamespace(speaker_encoder=None), cases_of(bank, "talk_voices", 1)
    own = bank.voice(case.shot.people[0].voice)
    (rival,) = timbre.rivals(bank, own)["sex"]
    sounds = [bank.reference(voice, np.random.default_rng(1)) for voice in (own, rival)]
    assert [evaluate_sound.heard_as_own(pipeline, bank, case, sound) for sound in sounds] == [True, False]
    alone = bank.only([voice.name for voice in bank.voices("held_out") if voice != rival])
    assert np.isnan(evaluate_sound.heard_as_own(pipeline, alone, case, sounds[0]))


def test_our_encoder_makes_rows_of_norm_1() -> None:
    rows = [
        timbre.OurEncoder(tiny_encoder())(sound, 48_000) for sound in np.random.default_rng(0).normal(size=(2, 9000))
    ]
    assert all(np.linalg.norm(row) == pytest.approx(1, abs=1e-5) for row in rows)


def tiny_encoder() -> ReDimNetSpeakerEncoder:
    torch.manual_seed(0)
    stages = ((1, 1, 2, ((3, 3),), 4), (2, 1, 1, ((3, 3),), None))
    model = ReDimNetSpeakerEncoder(num_mel_bins=12, channels=4, stages=stages, group_divisor=2, embedding_dim=8)
    return model.eval()


def test_the_report_tells_voices(
    bank: VoiceBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["talk", "pair"]
    pipeline = PerfectPipeline([case for name in rows for case in cases_of(bank, name, 2)], bank)
    monkeypatch.setattr(evaluate_people, "load_pipeline", lambda source: pipeline)
    monkeypatch.setattr(timbre, "INDEPENDENT", {"comb": lambda: comb})
    bank.save(tmp_path / "voices.npz")
    report = tmp_path / "report.json"
    evaluate_people.main(
        ["--voices", str(tmp_path / "voices.npz"), "--clips", "2", "--rows", *rows, "--timbre", "--out", str(report)]
    )
    data = json.loads(report.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert all(data["rows"][name]["voice comb"] == 1 for name in rows)
    assert data["rows"]["pair"]["binding comb"] == 1 and data["rows"]["talk"]["binding comb"] is None
    assert data["rows"]["talk"]["wer"] is None and "voice comb" not in data["rows"]["shuffled"]
    spans = data["details"]["pair"][0]["voices"]["comb"]
    assert len(spans) == 2 and all(span["own"] > span["partner"] for span in spans)
    table = capsys.readouterr().out
    assert "nan" not in table and "binding comb" in table


class GuidedPipeline:
    """Sound comes the nearer to its picture the higher video_align is, and the right voice speaks from timbre 2 on."""

    spec = SimpleNamespace(
        name="guided", fps=24, width=96, height=96, guidance=Guidance(video_align=4.0), accepts_speakers=True
    )
    speaker_encoder = tiny_encoder()

    def __init__(self, bank: VoiceBank, falling: list[Case], talking: list[Case]) -> None:
        self.bank = bank
        self.scenes = {case.prompt: case.scene for case in falling}
        self.shots = {case.prompt: case.shot for case in talking}
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(self, **options: Any) -> NavaPipelineOutput:
        self.calls.append(options)
        guidance = options["guidance"]
        if options["prompt"] in self.scenes:
            scene = self.scenes[options["prompt"]]
            frames = world.render_frames(scene, 96, 96).astype(np.float32) / 255
            sound = np.roll(world.render_sound(scene), round(0.05 * (4 - min(guidance.video_align, 4)) * 48_000), 1)
        else:
            shot = self.shots[options["prompt"]]
            voice = self.bank.voice(shot.people[0].voice)
            other = timbre.rivals(self.bank, voice)["sex"][0]
            sound = speaking.render_sound(shot if guidance.timbre >= 2 else with_voices(shot, other.name), self.bank)
            frames = np.zeros((2, 8, 8, 3), np.float32)
        return NavaPipelineOutput(frames=frames, audio=sound, sampling_rate=48_000, seed=0)


@pytest.fixture
def guided(bank: VoiceBank, monkeypatch: pytest.MonkeyPatch) -> GuidedPipeline:
    made = GuidedPipeline(bank, evaluate.make_cases(2, "held_out", moment=False), cases_of(bank, "talk_voices", 2))
    monkeypatch.setattr(guidance_curves, "load_pipeline", lambda source: made)
    monkeypatch.setattr(timbre, "INDEPENDENT", {"comb": lambda: comb})
    return made


def test_curves_show_what_each_axis_does(
    bank: VoiceBank, guided: GuidedPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank.save(tmp_path / "voices.npz")
    report, plot = tmp_path / "report.json", tmp_path / "curves.png"
    files = ["--voices", str(tmp_path / "voices.npz"), "--out", str(report), "--plot", str(plot)]
    guidance_curves.main([*files, "--clips", "2", "--timbre"])
    curves = json.loads(report.read_text(encoding="utf-8"), parse_constant=pytest.fail)["curves"]
    video = [point["sync share"] for point in curves["video_align"].values()]
    assert video[0] < 0.5 and video[-2:] == [1, 1] and video == sorted(video)
    assert {point["sync share"] for point in curves["audio_align"].values()} == {1}
    voices = [point["likeness comb"] for point in curves["timbre"].values()]
    assert voices[0] == voices[1] < voices[2] - 0.2 and voices[2] == voices[4]
    assert all(np.isfinite(point["likeness ours"]) for point in curves["timbre"].values())
    assert {name: list(curve) for name, curve in curves.items()} == {
        name: [str(scale) for scale in scales] for name, scales in guidance_curves.AXES.items()
    }
    seeds = [call["seed"] for call in guided.calls]
    assert len(seeds) == (5 + 4 + 5) * 2, "the default point, which two axes share, is made once"
    assert len(set(seeds)) == 4 and all(call["guidance"].align for call in guided.calls)
    table = capsys.readouterr().out
    assert "video_align 6" in table and "likeness comb" in table and "nan" not in table
    assert Image.open(plot).height > 3 * 200


def test_an_axis_may_be_measured_with_the_others_at_0(guided: GuidedPipeline, tmp_path: Path) -> None:
    guidance_curves.main(["--clips", "1", "--axes", "video_align", "--alone", "--out", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["alone"] is True
    asked = [call["guidance"] for call in guided.calls]
    assert [one.video_align for one in asked] == list(guidance_curves.ALIGN)
    assert not any((one.video, one.audio, one.audio_align, one.timbre) != (0, 0, 0, 0) for one in asked)


def test_a_model_without_voices_has_no_curve_of_timbre(
    guided: GuidedPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guided, "spec", SimpleNamespace(**{**vars(guided.spec), "accepts_speakers": False}))
    with pytest.raises(SystemExit):
        guidance_curves.main(["--clips", "1"])
    assert "--axes video_align audio_align" in capsys.readouterr().err


def test_a_chart_leaves_out_what_is_missing() -> None:
    nan = float("nan")
    gaps = line_chart("title", [0, 1, 2, 5], {"one": [nan, 0.5, -0.5, 1.0], "two": [nan] * 4})
    whole = line_chart("title", [1, 2, 5], {"one": [0.5, -0.5, 1.0]})
    assert gaps.size == whole.size and len(gaps.getcolors()) > 3
