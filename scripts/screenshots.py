"""Take the README's pictures of a running studio: empty, rewritten, at work, done, with an error; wide and narrow.

    python app.py &
    python scripts/screenshots.py [--url http://127.0.0.1:7860] [--out docs/images] [--chromium /path/to/chromium]

Needs playwright and a Chromium; the clip is made of a prompt that the page rewrites, with a fixed seed.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

logger = logging.getLogger("screenshots")

SIZES = {"": {"width": 1440, "height": 900}, "-phone": {"width": 390, "height": 844}}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE = 600_000  # milliseconds: a clip may take minutes on a busy machine
SETTLE = 1_500
QUICK_SETTLE = 300
QUIET_WAIT = 1_000
MOST_STEPS = "100"
PROMPT = "A woman with long brown hair in a yellow shirt in the rain says: ~~yes please~~. The camera pushes in"


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the README's pictures of a running studio.")
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="default: the one on the PATH")
    parser.add_argument("--example", type=int, default=0, help="which of the page's examples to make, from 0")
    parser.add_argument("--seed", default="7")
    parser.add_argument("--prompt", default=PROMPT, help="what is rewritten and made")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        for scheme, suffix in (("light", ""), ("dark", "-dark")):
            page = browser.new_page(color_scheme=scheme, viewport=SIZES[""])
            page.set_default_timeout(PATIENCE)
            page.goto(options.url, timeout=PATIENCE)
            _story(page, options, suffix)
            page.close()
        browser.close()


def _story(page: Any, options: argparse.Namespace, suffix: str) -> None:
    out = options.out
    page.wait_for_selector("#generate:not([disabled])")
    page.wait_for_selector(".nava-example")
    _shoot(page, out, f"studio-empty{suffix}")

    page.click(f".nava-example >> nth={options.example}")
    page.wait_for_selector("#tokens .nava-tokens")
    page.fill("#seed input", "seven")
    page.click("#generate")
    page.wait_for_selector('.nava-message[data-kind="error"] >> nth=0')
    _shoot(page, out, f"studio-error{suffix}", full_page=True)

    page.fill("#seed input", options.seed)
    page.fill("#prompt textarea", options.prompt)
    page.click("#rewrite")
    page.wait_for_selector("#use-caption")
    page.evaluate("scrollTo(0, 0)")
    _shoot(page, out, f"studio-rewritten{suffix}", full_page=True)

    # A clip of few steps is made before its picture can be taken.
    page.click("#advanced > button")
    steps = page.input_value("#steps input[type=number]")
    page.fill("#steps input[type=number]", MOST_STEPS)
    page.keyboard.press("Tab")
    page.click("#rewrite-and-generate")
    page.wait_for_selector(".nava-stage img")
    page.wait_for_function(
        "() => { const bar = document.querySelector('[role=progressbar]');"
        " return bar && bar.ariaValueNow >= 0.2 * bar.ariaValueMax; }"
    )
    page.evaluate("scrollTo(0, 0)")
    _shoot(page, out, f"studio-running{suffix}", settle=QUICK_SETTLE)
    page.click("#cancel")
    page.wait_for_selector('.nava-stage[data-kind="cancelled"]')

    page.fill("#steps input[type=number]", steps)
    page.keyboard.press("Tab")
    page.click("#rewrite-and-generate")
    # Asked once a second: where there is no GPU, what the browser does takes the clip's processor.
    while not page.is_visible("#clip video"):
        page.wait_for_timeout(QUIET_WAIT)
    page.wait_for_function("document.querySelector('#clip video')?.readyState >= 2")
    page.evaluate("document.querySelector('#clip video').currentTime = 1.9")
    page.evaluate("scrollTo(0, 0)")
    _shoot(page, out, f"studio-done{suffix}")


def _shoot(page: Any, out: Path, name: str, full_page: bool = False, settle: int = SETTLE) -> None:
    for suffix, size in SIZES.items():
        page.set_viewport_size(size)
        page.wait_for_timeout(settle)
        path = out / f"{name}{suffix}.png"
        page.screenshot(path=path, full_page=full_page or bool(suffix))
        logger.info("%s", path)
    page.set_viewport_size(SIZES[""])


if __name__ == "__main__":
    main()
