"""Voices, utterances and the measures of speech, with tones in the place of words, so that no synthesiser is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.ambience import AMBIENCES, ambience
from training.lexicon import WORDS, check_words
from training.recognise import WordRecogniser, word_error_rate, word_errors
from training.sounds import CLIP_SAMPLES, sound_clips
from training.speaker_encoder import MarginSoftmax, disturb
from training.speech_scores import mouth_correlation, speech_balance
from training.timbre import alike, equal_error_rate, labelled_pairs, nearer_own
from training.voice_rendering import variant_factors
from training.voice_sources import speak
from training.voices import PEAK, Utterance, Voice, VoiceBank, mix, mouth_levels, place

RATE = 16_000


def tone(hertz: float, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * hertz * time) * np.hanning(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def bank() -> VoiceBank:
    voices = [
        Voice(f"{base}-{index:02d}", base, sex, pitch * (1 + 0.05 * index), 1.0, split)
        for base, sex, pitch, split in (
            ("low", "m", 100.0, "train"), ("mid", "m", 104.0, "train"), ("high", "f", 220.0, "train"),
            ("new", "f", 200.0, "held_out"), ("old", "f", 205.0, "held_out"),
        )
        for index in range(2)
    ]  # fmt: skip
    words = {
        voice.name: {word: tone(voice.pitch + 20 * number, 0.3 + 0.01 * number) for number, word in enumerate(WORDS)}
        for voice in voices
    }
    return VoiceBank(voices, words)


def test_the_lexicon_is_checked() -> None:
    assert len(WORDS) >= 24
    assert check_words("hello blue tiger") == ("hello", "blue", "tiger")
    with pytest.raises(ValueError, match="1 to 4"):
        check_words([])
    with pytest.raises(ValueError, match="'horse'"):
        check_words(["horse"])


def test_an_utterance_says_its_words_in_order(bank: VoiceBank) -> None:
    voice = bank.voice("low-01")
    spoken = bank.utterance(voice, ["yes", "moon", "stop"], np.random.default_rng(1))
    again = bank.utterance(voice, ["yes", "moon", "stop"], np.random.default_rng(1))
    assert np.array_equal(spoken.samples, again.samples)
    assert [word for word, _, _ in spoken.words] == ["yes", "moon", "stop"]
    ends = [end for _, _, end in spoken.words]
    assert all(0.03 < start - end < 0.13 for (_, start, _), end in zip(spoken.words[1:], ends, strict=False))
    assert ends[-1] == pytest.approx(spoken.seconds)
    assert spoken.samples.dtype == np.float32 and np.abs(spoken.samples).max() <= PEAK


def test_gaps_shrink_before_anything_is_refused(bank: VoiceBank) -> None:
    voice, words = bank.voice("low-00"), ["go", "please"]
    alone = sum(len(bank.word(voice, word)) for word in words) / RATE
    short = bank.utterance(voice, words, np.random.default_rng(0), longest=alone + 0.025)
    assert short.seconds <= alone + 0.025
    with pytest.raises(ValueError, match="fewer words"):
        bank.utterance(voice, words, np.random.default_rng(0), longest=alone)


def test_the_mouth_opens_with_the_voice(bank: VoiceBank) -> None:
    spoken = bank.utterance(bank.voice("high-00"), ["hello", "night"], np.random.default_rng(2))
    times = np.linspace(-0.5, spoken.seconds + 0.5, 200)
    openings = spoken.opening(times)
    assert openings.dtype == np.float32 and openings.min() >= 0 and openings.max() <= 1
    assert (openings[(times < 0) | (times > spoken.seconds + 0.05)] == 0).all()
    middle, gap = sum(spoken.words[0][1:]) / 2, (spoken.words[0][2] + spoken.words[1][1]) / 2
    assert spoken.opening(np.array([middle]))[0] > 0.9 > 0.4 > spoken.opening(np.array([gap]))[0]


def test_a_mouth_is_as_open_at_any_loudness_and_rate() -> None:
    sound = tone(300, 0.5)
    assert np.allclose(mouth_levels(sound, RATE), mouth_levels(0.1 * sound, RATE), atol=1e-6)


def test_speech_is_placed_in_time_and_on_its_side(bank: VoiceBank) -> None:
    spoken = bank.utterance(bank.voice("mid-00"), ["river"], np.random.default_rng(3))
    for pan, sign in ((0.2, 1), (0.8, -1)):
        sound = place(spoken, 0.5, pan, 2.0)
        assert sound.shape == (2, 96_000) and sound.dtype == np.float32
        assert np.abs(sound[:, : 48_000 // 2 - 200]).max() < 1e-3
        assert sign * speech_balance(sound, 48_000, 0.5, 0.5 + spoken.seconds) > 3
    with pytest.raises(ValueError, match="do not fit"):
        place(spoken, 1.9, 0.5, 2.0)
    with pytest.raises(ValueError, match=r"\(2, samples\)"):
        speech_balance(np.zeros(100), 48_000)


def test_a_mix_has_one_noise_floor_and_does_not_clip() -> None:
    loud = np.full((2, 1000), 0.8, dtype=np.float32)
    assert np.abs(mix([loud, loud], np.random.default_rng(0))).max() < 1
    quiet = mix([np.zeros((2, 48_000), dtype=np.float32)] * 3, np.random.default_rng(0))
    assert 20 * np.log10(quiet.std()) == pytest.approx(-75, abs=0.2)


def test_a_bank_is_read_as_it_was_written(bank: VoiceBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "voices.npz")
    read = VoiceBank.load(tmp_path / "voices.npz")
    assert read.voices() == bank.voices()
    voice = read.voice("new-01")
    assert np.allclose(read.word(voice, "coffee"), bank.word(voice, "coffee"), atol=1 / 32767)
    with pytest.raises(FileNotFoundError, match=r"training\.voices"):
        VoiceBank.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="nobody"):
        read.voice("nobody")


def test_voices_are_drawn_from_their_split_and_references_avoid_words(bank: VoiceBank) -> None:
    rng = np.random.default_rng(4)
    assert {bank.draw(rng, "held_out").base for _ in range(20)} == {"new", "old"}
    reference = bank.reference(bank.voice("low-00"), rng, avoid=WORDS[1:], seconds=1.0)
    assert len(reference) == RATE
    word = bank.word(bank.voice("low-00"), WORDS[0])
    assert np.array_equal(reference[: len(word)], word)


def test_speech_clips_need_a_bank(bank: VoiceBank) -> None:
    first, second = (sound_clips(3, {"speech": 0.8, "ambience": 0.2}, 3, bank) for _ in range(2))
    assert all(torch.equal(one.high, other.high) for one, other in zip(first, second, strict=True))
    assert first[0].high.shape == (2, CLIP_SAMPLES)


@pytest.mark.parametrize("kind", AMBIENCES)
def test_ambience_is_quiet_and_stereo(kind: str) -> None:
    sound = ambience(kind, 1.5, np.random.default_rng(5))
    assert sound.shape == (2, 72_000) and sound.dtype == np.float32
    assert -36 < 20 * np.log10(sound.std()) < -29
    assert not np.array_equal(sound[0], sound[1])
    with pytest.raises(ValueError, match="rain, waves"):
        ambience("snow", 1.0, np.random.default_rng(0))


def test_variants_begin_with_the_voice_itself_and_stay_in_range() -> None:
    config = {"pitch": [0.8, 1.25], "tract": [0.9, 1.1], "tempo": [0.95, 1.05]}
    factors = np.array(variant_factors(20, config, np.random.default_rng(0)))
    assert (factors[0] == 1).all()
    for column, (low, high) in enumerate(config.values()):
        assert factors[:, column].min() >= low and factors[:, column].max() <= high
        assert np.ptp(np.log(factors[1:, column])) > 0.7 * np.log(high / low)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ValueError, match="flite"):
        speak("hello", "parrot", "polly")


def test_shaping_changes_pitch_formants_and_tempo() -> None:
    pytest.importorskip("pyworld")
    from training.voice_shaping import LOUDNESS, analyse, shape

    time = np.arange(8000) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) * np.exp(-(((120 * k - 1000) / 300) ** 2)) for k in range(1, 40))
    word = analyse(buzz * np.hanning(8000) ** 0.2, RATE)
    plain, longer, high, slow = shape(word), shape(word, tract=1.25), shape(word, pitch=1.5), shape(word, tempo=0.5)

    def centre(sound: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float(power @ np.fft.rfftfreq(len(sound), 1 / RATE) / power.sum())

    assert centre(longer) == pytest.approx(centre(plain) / 1.25, rel=0.06)
    assert centre(high) == pytest.approx(centre(plain), rel=0.1)
    again = analyse(high, RATE)
    assert np.median(again.pitch[again.pitch > 0]) == pytest.approx(180, rel=0.03)
    assert len(slow) == pytest.approx(2 * len(plain), rel=0.1)
    assert plain.std() == pytest.approx(LOUDNESS, rel=0.25)


def test_word_errors_are_the_least_edits() -> None:
    assert word_errors(["yes", "moon"], ["yes", "moon"]) == 0
    assert word_errors(["yes", "moon", "go"], ["yes", "go"]) == 1
    assert word_errors(["yes"], ["moon", "yes", "blue"]) == 2
    assert word_error_rate([(["yes", "go"], ["yes"]), (["moon", "blue"], ["moon", "stop"])]) == 0.5
    with pytest.raises(ValueError, match="no words"):
        word_error_rate([([], ["yes"])])


def test_a_missing_recogniser_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="pip install"):
        WordRecogniser(str(tmp_path / "nothing"))


def test_a_mouth_correlates_with_its_own_speech(bank: VoiceBank) -> None:
    rng = np.random.default_rng(6)
    spoken, other = (bank.utterance(bank.voice("high-01"), words, rng) for words in ("hello tiger", "banana"))
    sound = place(spoken, 0.3, 0.5, 2.0)
    times = np.arange(48) / 24
    assert mouth_correlation(spoken.opening(times - 0.3), sound, 48_000, 24) > 0.9
    assert mouth_correlation(other.opening(times - 1.4), sound, 48_000, 24) < 0.3
    assert mouth_correlation(np.zeros(48), sound, 48_000, 24) == 0
    late = spoken.opening(times - 0.3 - 2 / 24)
    assert mouth_correlation(late, sound, 48_000, 24, reach=2) > mouth_correlation(late, sound, 48_000, 24)


def test_pairs_of_voices_and_their_error_rate(bank: VoiceBank) -> None:
    pairs = labelled_pairs(bank, "train", 12, np.random.default_rng(7), across_bases=True)
    assert [pair.same for pair in pairs] == [True, False] * 12
    assert any(pair.like for pair in pairs if not pair.same)
    assert alike(bank.voice("low-00"), bank.voice("mid-00")) and not alike(bank.voice("low-00"), bank.voice("high-00"))
    assert equal_error_rate([0.9, 0.8, 0.2, 0.1], [True, True, False, False]) == 0
    assert equal_error_rate([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 1
    with pytest.raises(ValueError, match="two"):
        equal_error_rate([0.5], [True])


def test_nearer_own_takes_any_encoder() -> None:
    def encoder(audio: np.ndarray, rate: int) -> np.ndarray:
        power = np.abs(np.fft.rfft(audio, rate)) ** 2
        return power / np.linalg.norm(power)

    assert nearer_own(encoder, tone(200, 1.0), tone(200, 1.0), tone(300, 1.0), RATE)
    assert not nearer_own(encoder, tone(300, 1.0), tone(200, 1.0), tone(300, 1.0), RATE)


def test_the_margin_makes_the_task_harder() -> None:
    torch.manual_seed(0)
    head = MarginSoftmax(16, 5, scale=20.0, margin=0.3)
    embeddings, labels = torch.randn(8, 16), torch.arange(8) % 5
    assert head(embeddings, labels, 1.0) > head(embeddings, labels, 0.0)
    assert torch.isfinite(head(head.weight.detach(), torch.arange(5), 1.0))


@pytest.mark.parametrize("seed", range(5))
def test_disturbed_voices_are_finite_and_as_long(seed: int) -> None:
    sound = disturb(tone(200, 1.0), np.random.default_rng(seed))
    assert sound.shape == (RATE,) and sound.dtype == np.float32
    assert np.isfinite(sound).all() and np.abs(sound).max() > 0.01


def test_an_utterance_knows_its_length() -> None:
    assert Utterance(np.zeros(8000, dtype=np.float32), ()).seconds == 0.5
