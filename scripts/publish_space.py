"""Publish the studio as a Hugging Face Space.

    python scripts/publish_space.py OWNER/NAME --dry-run     what would be uploaded, and how large it is
    HF_TOKEN=... python scripts/publish_space.py OWNER/NAME

The token is read from the environment alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

ROOT = Path(__file__).resolve().parent.parent
# What the app needs to run. Everything else stays at home, above all what nobody has thought of yet.
SHIPPED = ["app.py", "inference_nava.py", "LICENSE", "nava_core/*", "rewriter/*", "ui/*", "assets/*", "configs/*"]
IGNORED = [
    "tests/*",
    "training/*",
    "runs/*",
    "outputs/*",
    "eval_results/*",
    "*__pycache__*",
    "*.pyc",
    ".*",
    "*/.*",
    "*.egg-info*",
    "*.sqlite3*",
    "*.log",
]
# What a Space has of its own, by the name that it gets there.
OWN = {
    "README.md": ROOT / "scripts" / "space" / "README.md",
    "requirements.txt": ROOT / "scripts" / "space" / "requirements.txt",
    "requirements-runtime.txt": ROOT / "requirements.txt",
}
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
USAGE_ERROR, FAILED = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    files = shipped_files()
    if options.dry_run:
        sys.stdout.write(listing(options.space, files))
        return 0
    token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    if token is None:
        sys.stderr.write(f"there is no token; put one that may write into {TOKEN_VARIABLES[0]}, or give --dry-run\n")
        return USAGE_ERROR
    try:
        address = publish(HfApi(token=token), options.space, files, private=options.private, message=options.message)
    except HfHubHTTPError as error:
        sys.stderr.write(f"the Hub refused it: {error}\n")
        return FAILED
    sys.stdout.write(f"{address}\n")
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Publish NAVA Studio as a Hugging Face Space.")
    parser.add_argument("space", help="OWNER/NAME of the Space; made where it is not there yet")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded and its size, and stop")
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--message", default="NAVA Studio", help="the commit's message")
    options = parser.parse_args(arguments)
    try:
        validate_repo_id(options.space)
    except HFValidationError:
        parser.error(f"{options.space!r} is no name of a Space; give OWNER/NAME")
    if "/" not in options.space:
        parser.error(f"{options.space!r} names no owner; give OWNER/NAME")
    return options


def shipped_files(root: Path = ROOT) -> dict[str, Path]:
    """What is uploaded: names in the Space, and where the files are. Links are left out: they may lead anywhere."""
    names = sorted(_all_files(root))
    chosen = filter_repo_objects(names, allow_patterns=SHIPPED, ignore_patterns=IGNORED)
    return OWN | {name: root / name for name in chosen}


def listing(space: str, files: dict[str, Path]) -> str:
    """A line for each file, then how much it is."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    lines = [f"{size:>12,}  {name}" for name, size in sorted(sizes.items())]
    total = sum(sizes.values())
    return "\n".join([*lines, f"{total:>12,}  bytes in {len(files)} files for the Space {space}", ""])


def publish(api: HfApi, space: str, files: dict[str, Path], *, private: bool, message: str) -> str:
    """Upload the files as one commit, and delete what was there of older ones; returns the Space's address."""
    api.create_repo(space, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nava-space-") as folder:
        for name, path in files.items():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        # As a folder, so that weights and clips go the way that the Hub has for binaries.
        api.upload_folder(
            repo_id=space,
            repo_type="space",
            folder_path=folder,
            ignore_patterns=IGNORED,
            delete_patterns=["*"],
            commit_message=message,
        )
    return f"https://huggingface.co/spaces/{space}"


def _all_files(root: Path) -> Iterator[str]:
    tops = sorted({pattern.split("/")[0] for pattern in SHIPPED})
    for top in tops:
        start = root / top
        found = start.rglob("*") if start.is_dir() else [start]
        for path in found:
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root).as_posix()


if __name__ == "__main__":
    sys.exit(main())
