"""Every finished clip, for longer than the queue remembers: found, marked, deleted, taken back and handed on.

Clips come from the engine's finished jobs (`watch`) and from files of ours that are found in the output folder. All
that the gallery writes is in `output_dir`/.studio, and all that it hands out is inside `output_dir`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nava_core.engine.files import FileVault
from nava_core.engine.jobs import Engine, EngineError, Job, UnknownJob
from nava_core.ffmpeg import MediaError
from nava_core.media import read_recipe
from ui.library.clips import Clip, ClipIndex, Shown, Stack, UnknownClip
from ui.library.stills import make_poster, save_last_frame, save_without_recipe

logger = logging.getLogger(__name__)

STUDIO = ".studio"
GALLERY_DATABASE = Path(STUDIO) / "gallery.sqlite3"
"""Where a gallery lives by custom, within the folder of its clips."""
TRASH_SECONDS = 30 * 24 * 3600.0
EXPORT_SECONDS = 24 * 3600.0
SUFFIXES = (".mp4", ".wav")
_JOB_ID = re.compile(r"[0-9a-f]{16}")
# What reading, copying or indexing one clip may raise; the next clip is not to suffer from it.
_TROUBLE = (OSError, ValueError, MediaError, sqlite3.Error)


def private_paths(database_path: Path, output_dir: Path) -> list[str]:
    """What must never be served, though it lies in the output folder: the index knows everybody's clips."""
    database = database_path.resolve()
    return [*(f"{database}{ending}" for ending in ("", "-wal", "-shm")), str(output_dir.resolve() / STUDIO / "trash")]


class Gallery:
    """The clips in `output_dir` and their index in `database_path`. Any thread may use it.

    Raises ValueError where the index cannot be opened. Methods that take a clip's id raise UnknownClip for one that is
    not the owner's.
    """

    def __init__(self, database_path: str | Path, output_dir: str | Path):
        self.output_dir = Path(output_dir).resolve()
        self.database_path = Path(database_path).resolve()
        studio = self.output_dir / STUDIO
        self._posters, self._trash, self._exports, self._frames = (
            studio / name for name in ("posters", "trash", "exports", "frames")
        )
        # The engine forgets a job's voices and pictures with the job; a clip's recipe still names them.
        self._kept, self._queued = FileVault(studio / "kept"), FileVault(studio / "files")
        self._index = ClipIndex(self.database_path, self.output_dir, self._posters)
        self._moving = threading.Lock()
        self._closed = threading.Event()
        self.purge()

    def close(self) -> None:
        """What watches for new clips ends at its next one."""
        self._closed.set()
        self._index.close()

    @property
    def version(self) -> int:
        """A number that grows with every change; cheap to ask for."""
        return self._index.version

    # Finding

    def clip(self, owner: str, clip_id: str) -> Clip:
        return self._index.clip(owner, clip_id)

    def clips(
        self, owner: str, search: str = "", favourites: bool = False, offset: int = 0, limit: int = 48
    ) -> list[Clip]:
        """The owner's clips that hold every word of `search`, the newest first."""
        return self._index.clips(owner, search, "favourites" if favourites else "all", offset, limit)

    def stacks(
        self, owner: str, search: str = "", shown: Shown = "all", offset: int = 0, limit: int = 24
    ) -> tuple[list[Stack], int]:
        """The same, with the variations of one request together; and how many stacks there are in all."""
        return self._index.stacks(owner, search, shown, offset, limit)

    def stack(self, owner: str, stack_id: str) -> Stack:
        """All the variations that are not deleted, whatever the page shows of them."""
        return self._index.stack(owner, stack_id)

    def file_of(self, owner: str, clip_id: str) -> Path:
        """The clip's file, which is there and inside the output folder. Raises FileNotFoundError if it is not."""
        clip = self.clip(owner, clip_id)
        if clip.deleted is not None or clip.missing or not self._is_inside(clip.path):
            raise FileNotFoundError(f"the file {clip.path.name} is not in the output folder any more")
        return clip.path

    def owns(self, owner: str, path: Path) -> bool:
        """Whether a file of the output folder may go to this owner: a clip, its poster, its last frame, an export."""
        if path.is_relative_to(self._exports):
            return True  # in a folder whose random name only its owner was told
        if path.parent in (self._posters, self._frames):
            return self._index.has(owner, path.stem)
        return self._index.has_file(owner, path)

    # Changing

    def favourite(self, owner: str, clip_id: str, favourite: bool = True) -> None:
        self._index.set_favourite(self.clip(owner, clip_id).id, favourite)

    def delete(self, owner: str, clip_id: str) -> None:
        """Move the clip to the trash, from which `undo` brings it back for 30 days. Raises OSError."""
        with self._moving:
            clip = self.clip(owner, clip_id)
            if clip.deleted is not None:
                return
            if not clip.missing and self._is_inside(clip.path):
                self._trash.mkdir(parents=True, exist_ok=True)
                clip.path.replace(self._trashed(clip))
            self._index.set_deleted(clip.id, True)

    def undo(self, owner: str, clip_id: str) -> None:
        """Bring a deleted clip back. Raises OSError."""
        with self._moving:
            clip = self.clip(owner, clip_id)
            if clip.deleted is None:
                return
            if (trashed := self._trashed(clip)).is_file():
                place = clip.path
                if place.exists():  # something else took its name in the meantime
                    place = place.with_name(f"{place.stem}-{secrets.token_hex(4)}{place.suffix}")
                    self._index.set_path(clip.id, place)
                place.parent.mkdir(parents=True, exist_ok=True)
                trashed.replace(place)
            self._index.set_deleted(clip.id, False)

    def purge(self, older_than: float = TRASH_SECONDS) -> int:
        """Delete for good what has been in the trash for longer than so many seconds; how many clips those were."""
        oldest, purged = time.time() - older_than, 0
        everything = self._index.everything()
        for clip in everything:
            if clip.deleted is not None and clip.deleted <= oldest:
                for path in (self._trashed(clip), self._posters / f"{clip.id}.jpg", self._frames / f"{clip.id}.png"):
                    path.unlink(missing_ok=True)
                self._index.forget(clip.id)
                purged += 1
        if purged:
            self._kept.prune(path for clip in self._index.everything() for path in _files_named(clip.recipe))
        if self._exports.is_dir():
            for folder in self._exports.iterdir():
                if folder.stat().st_mtime < time.time() - EXPORT_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        return purged

    # Handing on

    def export_copy(self, owner: str, clip_id: str, with_recipe: bool) -> Path:
        """A file to download: the clip itself, or a copy of the same name that does not hold the recipe.

        Raises FileNotFoundError, ValueError, MediaError.
        """
        path = self.file_of(owner, clip_id)
        return path if with_recipe else self.anonymous_copy(path)

    def anonymous_copy(self, path: Path) -> Path:
        """A copy of a clip, of the same name, that does not hold the recipe. Raises ValueError, MediaError."""
        return save_without_recipe(path, self._exports / secrets.token_hex(16) / path.name)

    def last_frame(self, owner: str, clip_id: str) -> Path:
        """A PNG of the clip's last frame. Raises FileNotFoundError, ValueError."""
        path = self.file_of(owner, clip_id)
        target = self._frames / f"{clip_id}.png"
        return target if target.is_file() else save_last_frame(path, target)

    def own_recipe(self, owner: str, recipe: dict[str, Any]) -> dict[str, Any]:
        """A recipe from a file that somebody brought, with the files that it names.

        It may name any path: only copies that the owner's own clips name are followed; of others the bare name stays.
        """
        own = {
            path.parts[-2:]: str(path)
            for clip in self._index.everything(owner)
            for path in _files_named(clip.recipe)
            if path.is_file()
        }

        def allowed(value: Any) -> Any:
            return own.get(Path(value).parts[-2:], _bare_name(value)) if isinstance(value, str) else None

        return _with_files(recipe, allowed)

    # Filling

    def add(self, job: Job) -> bool:
        """Take in a finished job's clip; whether it is new. Raises OSError, ValueError where it cannot be."""
        if job.state != "done" or job.result is None or job.recipe is None or not job.result.is_file():
            return False
        path = job.result.resolve()
        if not self._is_inside(path):
            raise ValueError(f"{path} is not in the output folder {self.output_dir}")
        clip = Clip(job.id, job.owner, path, job.recipe, job.ended or job.created, variations=job.variations)
        # Whatever a job's request names is the queue's copy, or was read for it.
        return self._added(replace(clip, recipe=_with_files(clip.recipe, self._keep)))

    def scan(self, engine: Engine | None = None) -> int:
        """Take in the files of ours in the output folder that are not known; how many there were.

        A job that the engine knows is left to `watch`, which knows whose it is.
        """
        found = 0
        for path in self._unknown_files():
            if self._closed.is_set():
                break
            try:
                recipe = read_recipe(path)
                if isinstance(recipe.get("prompt"), str) and not _is_queued(engine, recipe):
                    recipe = _with_files(recipe, self._keep_queued)
                    found += self._added(Clip(_id_of(path, self.output_dir, recipe), "", path, recipe, _age(path)))
            except _TROUBLE as error:
                logger.debug("%s is not taken into the gallery: %s", path, error)
        return found

    def make_posters(self) -> None:
        """The posters that are still to be made; a clip that has none is shown without."""
        for clip in self._index.without_poster():
            if self._closed.is_set():
                return
            self._make_poster(clip)

    def watch(self, engine: Engine) -> None:
        """From now on take in every clip that the engine finishes, and once what lies in the folder already."""
        for name, work in (("follow", self._follow), ("scan", self._scan_once)):
            threading.Thread(target=work, args=(engine,), name=f"gallery-{name}", daemon=True).start()

    def _follow(self, engine: Engine) -> None:
        done: set[str] = set()
        for _ in engine.changes():
            for job in engine.jobs():
                if self._closed.is_set():
                    return
                if job.state != "done" or job.id in done:
                    continue
                with self._surviving(f"job {job.id}"):
                    self.add(job)
                done.add(job.id)

    def _scan_once(self, engine: Engine) -> None:
        with self._surviving("the output folder"):
            self.scan(engine)
            self.make_posters()

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """The watching threads outlive what goes wrong with one clip."""
        try:
            yield
        except (*_TROUBLE, EngineError) as error:
            if not self._closed.is_set():
                logger.warning("%s could not be taken into the gallery: %s", what, error)

    def _added(self, clip: Clip) -> bool:
        if not self._index.add(clip):
            return False
        self._make_poster(clip)
        return True

    def _make_poster(self, clip: Clip) -> None:
        try:
            make_poster(clip.path, self._posters / f"{clip.id}.jpg", clip.seconds)
        except (ValueError, MediaError, OSError) as error:
            logger.info("the clip %s has no poster: %s", clip.path.name, error)
            self._index.set_poster(clip.id, False)
        else:
            self._index.set_poster(clip.id, True)

    def _keep(self, value: Any) -> Any:
        """The gallery's own copy of a file; what is none stays as it stands."""
        if not isinstance(value, str) or not Path(value).is_absolute() or not Path(value).is_file():
            return value
        return str(self._kept.keep(Path(value)))

    def _keep_queued(self, value: Any) -> Any:
        """The same, for the copies of the queue alone: the file that names it may be anybody's."""
        inside = isinstance(value, str) and Path(value).resolve().is_relative_to(self._queued.folder.resolve())
        return self._keep(value) if inside else _bare_name(value)

    def _unknown_files(self) -> list[Path]:
        """The newest first. Hidden folders are the app's own."""
        files = [
            path
            for path in self.output_dir.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(self.output_dir).parts)
            and path.is_file()
            and self._is_inside(path)
            and not self._index.knows(path)
        ]
        return sorted(files, key=_age, reverse=True)

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.output_dir)

    def _trashed(self, clip: Clip) -> Path:
        return self._trash / f"{clip.id}{clip.path.suffix}"


def _with_files(recipe: dict[str, Any], change: Any) -> dict[str, Any]:
    """The recipe with every file that it names changed."""
    changed = dict(recipe)
    if recipe.get("image") is not None:
        changed["image"] = change(recipe["image"])
    if isinstance(recipe.get("speakers"), list):
        changed["speakers"] = [None if value is None else change(value) for value in recipe["speakers"]]
    return changed


def _bare_name(value: Any) -> str | None:
    return re.split(r"[/\\]", value)[-1] if isinstance(value, str) else None


def _files_named(recipe: dict[str, Any]) -> list[Path]:
    speakers = recipe.get("speakers")
    named = [recipe.get("image"), *(speakers if isinstance(speakers, list) else ())]
    return [Path(value) for value in named if isinstance(value, str) and value.startswith("/")]


def _is_queued(engine: Engine | None, recipe: dict[str, Any]) -> bool:
    if engine is None:
        return False
    try:
        engine.job(str(recipe.get("job")))
    except UnknownJob:
        return False
    return True


def _id_of(path: Path, folder: Path, recipe: dict[str, Any]) -> str:
    """Its job's, where the recipe and the file's name agree on one; else one made of the name."""
    job = recipe.get("job")
    if isinstance(job, str) and _JOB_ID.fullmatch(job) and path.stem.endswith(f"-{job}"):
        return job
    name = path.relative_to(folder).as_posix()
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # gone in the meantime


__all__ = ["GALLERY_DATABASE", "Clip", "Gallery", "Stack", "UnknownClip", "private_paths"]
