"""What a queued request needs beside its words: copies of its files, kept for as long as a job names them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from nava_core.engine.disk import disk_full_explained
from nava_core.request import GenerationRequest, RequestError, ResolvedRequest

logger = logging.getLogger(__name__)

CHUNK = 2**20
# A copy that no job names yet may belong to one that is just being submitted.
SPARED_SECONDS = 3600.0
_PARTIAL = ".part-"
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


class FileVault:
    """Copies under `folder`/<hash of the content>/<name>, so that the same file is kept once and keeps its name."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def keep(self, source: Path) -> Path:
        """A copy of a file; one that is a copy already stays where it is. Raises OSError, DiskFullError."""
        if source.absolute().is_relative_to(self.folder):
            os.utime(source)
            return source.absolute()
        with source.open("rb") as original:
            return self._store(source.name, lambda copy: shutil.copyfileobj(original, copy, CHUNK))

    def keep_array(self, array: np.ndarray) -> Path:
        """A .npy of it, bit for bit."""
        return self._store("array.npy", lambda copy: np.save(copy, array, allow_pickle=False))

    def keep_picture(self, picture: Image.Image) -> Path:
        """A picture in memory, upright, as a file without loss."""
        upright = ImageOps.exif_transpose(picture)
        kind = "png" if upright.mode in _PNG_MODES else "tiff"
        return self._store(f"picture.{kind}", lambda copy: upright.save(copy, kind))

    def prune(self, used: Iterable[Path], spared_seconds: float = SPARED_SECONDS) -> None:
        """Delete the copies that no job names, but for those of the last `spared_seconds`."""
        if not self.folder.is_dir():
            return
        wanted, now = {path.parent.name for path in used}, time.time()
        for entry in self.folder.iterdir():
            if entry.name in wanted:
                continue
            try:
                young = any(now - path.stat().st_mtime < spared_seconds for path in (entry, *_files_in(entry)))
            except OSError:
                continue  # gone in the meantime
            if young:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def _store(self, name: str, write: Callable[[IO[bytes]], Any]) -> Path:
        with disk_full_explained(self.folder, f"the copy of {name}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{_PARTIAL}{secrets.token_hex(8)}"
            try:
                with partial.open("xb") as copy:
                    write(copy)
                    copy.flush()
                    os.fsync(copy.fileno())
                with partial.open("rb") as copy:
                    digest = hashlib.file_digest(copy, "sha256").hexdigest()[:32]
                place = self.folder / digest
                place.mkdir(exist_ok=True)
                partial.replace(place / name)
                os.utime(place)
                return place / name
            finally:
                partial.unlink(missing_ok=True)


def pack(request: GenerationRequest, vault: FileVault) -> str:
    """A request as JSON that outlives the files and arrays it was made with; `unpack` is the way back.

    Raises RequestError for a reference or image that cannot be kept, DiskFullError.
    """
    written = {
        **request.to_recipe(),
        "image": _keep("image", request.image, vault),
        "speakers": [_keep("speakers", speaker, vault) for speaker in request.speakers],
        "resolved": isinstance(request, ResolvedRequest),
    }
    return json.dumps(written)  # ASCII: half a surrogate pair, which a browser may send, is no text for a database


def unpack(text: str) -> GenerationRequest:
    """The request that `pack` wrote, resolved if it was."""
    written = json.loads(text)
    kind = ResolvedRequest if written.pop("resolved") else GenerationRequest
    written["image"] = _restored(written["image"])
    written["speakers"] = [_restored(speaker) for speaker in written["speakers"]]
    return kind.from_recipe(written)


def files_of(text: str) -> set[Path]:
    """The files that a packed request names."""
    written = json.loads(text)
    named = (value["array"] if isinstance(value, dict) else value for value in [written["image"], *written["speakers"]])
    return {Path(value) for value in named if value is not None}


def _keep(field: str, value: Any, vault: FileVault) -> Any:
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        return _keep_path(os.fspath(value), vault)
    if isinstance(value, Image.Image):
        return str(vault.keep_picture(value))
    samples, extra = value, {}
    if isinstance(value, tuple | list) and len(value) == 2:
        samples, extra = value[0], {"rate": value[1].item() if isinstance(value[1], np.generic) else value[1]}
    if callable(getattr(samples, "detach", None)):  # a tensor, without importing torch for it
        samples = samples.detach().float().cpu().numpy()
    array = np.asarray(samples)
    if array.dtype.kind not in "fiub" or not isinstance(extra.get("rate", 1), int | float):
        raise RequestError(
            field, f"{field} holds a {type(value).__name__}, which cannot be queued; give a path or an array"
        )
    return {"array": str(vault.keep_array(array)), **extra}


def _keep_path(path: str, vault: FileVault) -> str:
    if not Path(path).is_file():
        return path  # the run will say what is wrong with it
    try:
        return str(vault.keep(Path(path)))
    except PermissionError:
        logger.warning("%s cannot be read, so it is not copied", path)
        return path


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        array = np.load(value["array"], allow_pickle=False)
    except OSError:
        return value["array"]  # lost; as a path it leads to a message that names it
    return (array, value["rate"]) if "rate" in value else array


def _files_in(entry: Path) -> Iterable[Path]:
    return entry.iterdir() if entry.is_dir() else ()
