"""Shared fixtures. The larger golden files are kept xz-compressed and unpacked beside themselves once."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import launched, one_person
from hypothesis import HealthCheck, settings

# Without it MKL's sums depend on where a tensor lies in memory, and no two processes need give the same bits.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

GOLDEN = Path(__file__).parent / "golden"
# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def _unpack_golden() -> None:
    for packed in GOLDEN.rglob("*.xz"):
        plain = packed.with_suffix("")
        if not plain.exists():
            partial = plain.with_name(f"{plain.name}.{os.getpid()}")
            partial.write_bytes(lzma.decompress(packed.read_bytes()))
            partial.replace(plain)


_unpack_golden()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of a module and not of the session: while it is open, no other test of its thread could run an event loop."""
    with launched() as browser:
        yield browser


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    with one_person(browser) as context:
        yield context


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests that are marked soak, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes and both cores; give --soak to run it"))
