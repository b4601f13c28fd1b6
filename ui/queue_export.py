"""Jobs as a JSONL file whose lines inference_nava.py accepts, and that import again as equal requests."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nava_core.engine.jobs import Job
from nava_core.request import GenerationRequest, Shortcuts
from ui.queue_file import NUMBERS, TEXTS, WHOLE

NAME = "nava-queue"


def write_export(jobs: Iterable[Job], folder: Path) -> tuple[Path | None, list[Job]]:
    """The file in `folder`, None where no job can be written; and the jobs that cannot, whose files are none.

    A .jsonl; with files a .zip that holds it and them side by side, as the batch command finds them. Lines name them by
    their file names: where the server keeps its copies is nobody's business.
    """
    names = _Names()
    lines, left_out = [], []
    for job in jobs:
        files = [value for value in (job.request.image, *job.request.speakers) if value is not None]
        if all(isinstance(value, str | Path) and Path(value).is_file() for value in files):
            lines.append(json.dumps(_written(job.request, names)) + "\n")
        else:
            left_out.append(job)
    if not lines:
        return None, left_out
    jsonl = folder / f"{NAME}.jsonl"
    jsonl.write_text("".join(lines), encoding="utf-8")
    if not names.files:
        return jsonl, left_out
    with zipfile.ZipFile(folder / f"{NAME}.zip", "w") as archive:
        archive.write(jsonl, jsonl.name)
        for path, name in names.files.items():
            archive.write(path, name)
    jsonl.unlink()
    return folder / f"{NAME}.zip", left_out


class _Names:
    """Gives each file a name of its own: the one that it has, and a number where two have the same."""

    def __init__(self) -> None:
        self.files: dict[Path, str] = {}

    def of(self, value: str | Path) -> str:
        path = Path(value)
        if path not in self.files:
            taken, number, name = {*self.files.values(), f"{NAME}.jsonl"}, 2, path.name
            while name in taken:
                name, number = f"{path.stem}-{number}{path.suffix}", number + 1
            self.files[path] = name
        return self.files[path]


def _written(request: GenerationRequest, names: _Names) -> dict[str, Any]:
    line: dict[str, Any] = {"prompt": request.prompt}
    if request.image is not None:
        line["image_path"] = names.of(request.image)
    if request.has_references:
        line["spk_wavs"] = [None if voice is None else names.of(voice) for voice in request.speakers]
    for key in (*TEXTS, *WHOLE, *NUMBERS):
        if getattr(request, key) is not None:
            line[key] = getattr(request, key)
    if request.guidance is not None:
        line["guidance"] = asdict(request.guidance)
    if request.shortcuts != Shortcuts():
        line["shortcuts"] = asdict(request.shortcuts)
    if request.loras:
        line["loras"] = {Path(path).stem: scale for path, scale in request.loras}
    return line
