"""A model on the Hugging Face hub -> a local folder with the files that are needed and no others."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from nava_core.bundle import BACKBONE_CONFIG_FILES, BACKBONE_FILES, PART_FILES, SETTINGS_FILES

logger = logging.getLogger(__name__)

MODEL_INDEX = "model_index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DIFFUSERS_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}


def is_hub_id(source: str) -> bool:
    """Whether a string has the form `owner/name`."""
    return HUB_ID.fullmatch(source) is not None


def files_needed(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that `load_pipeline` reads: a diffusers folder's, else an official bundle's.

    Of a bundle's backbones, each of many gigabytes, only the first is taken. Empty where the repository is neither.
    """
    names = set(names)
    if MODEL_INDEX in names:
        paths = [PurePosixPath(name) for name in names]
        return sorted(str(path) for path in paths if path.suffix in DIFFUSERS_SUFFIXES and len(path.parts) <= 2)
    backbone = next((name for name in BACKBONE_FILES if name in names), None)
    if backbone is None:
        return []
    wanted = {backbone, *PART_FILES.values(), *SETTINGS_FILES, *BACKBONE_CONFIG_FILES}
    extra = {name for name in names if name.endswith(".pt") or (name.startswith("configs/") and name.endswith(".json"))}
    return sorted((wanted & names) | extra)


def download(repo_id: str) -> Path:
    """Downloads what is needed of a model, with progress bars, or finds it in the hub's cache.

    Raises ValueError where the hub has no such model, cannot be reached, or has it in a form that is not NAVA's.
    """
    try:
        names = list_repo_files(repo_id)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{repo_id!r} is neither a folder here nor a model on the Hugging Face hub. Check the spelling; "
            "for a private model log in with `hf auth login`."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        return _cached(repo_id, error)
    needed = files_needed(names)
    if not needed:
        raise ValueError(
            f"The model {repo_id} on the hub has neither {MODEL_INDEX} nor one of {', '.join(BACKBONE_FILES)}: "
            "it is not a NAVA model."
        )
    logger.info("Downloading %d files of %s.", len(needed), repo_id)
    return Path(snapshot_download(repo_id, allow_patterns=needed))


def _cached(repo_id: str, cause: Exception) -> Path:
    try:
        folder = snapshot_download(repo_id, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{repo_id!r} is no folder here, is not in the hub's cache, and the hub cannot be reached ({cause})."
        ) from error
    logger.warning("The hub cannot be reached; %s is taken from its cache.", repo_id)
    return Path(folder)
