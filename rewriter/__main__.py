"""Rewrite a file of prompts: python -m rewriter --input prompts.txt --output captions.txt"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rewriter.batch import SOME_FAILED, plan, run
from rewriter.factory import BackendName, make_rewriter
from rewriter.results import RewriteError

logger = logging.getLogger("rewriter")

DONE, USAGE_ERROR, INTERRUPTED = 0, 2, 130

EPILOG = """\
files
  .txt    a prompt a line -> a caption a line
  .jsonl  an object a line: its prompt (or text) becomes the caption, the prompt is kept as original_prompt, and
          everything else is carried through
  Lines stay in their places, blank ones too, so that inference_nava.py names the clips as it would have. A .txt file
  may become a .jsonl one.
  Beside OUTPUT stands OUTPUT.rows.jsonl: a line for each prompt done, with its backend, its outcome (as is, repaired,
  retried, composed) and notes. The same command goes on from there: what is done is not asked again, what failed is.
  A line that failed keeps its prompt; it is named on stderr and in the rows file, and in a .jsonl output it has a
  rewrite_error.

speech
  Speech (~~line~~ or <S>line<E>) is never shown to the model and comes back letter for letter.

backends
  vllm          an OpenAI-compatible server; scripts/start_rewriter.sh starts one
  transformers  a model in this process, one prompt at a time
  offline       rules, no language model: it knows nava-nano's world, and leaves other prompts in their own words
  auto          the first of these that is there (transformers: only with the model downloaded, and a GPU)

exit code
  0 all prompts have captions, 1 some failed, 2 the command cannot be run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    try:
        if args.concurrency < 1:
            raise ValueError(f"--concurrency is {args.concurrency}; give a whole number, 1 or more")
        batch = plan(args.input, args.output)
        rewriter = make_rewriter(
            args.backend,
            base_url=args.base_url,
            model=args.model,
            concurrency=args.concurrency,
            timeout=args.timeout,
            four_bit=args.four_bit,
            device=args.device,
        )
    except (ValueError, OSError, RewriteError) as error:
        print(f"python -m rewriter: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        failed = asyncio.run(run(batch, rewriter))
    except RewriteError as error:
        print(f"python -m rewriter: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"python -m rewriter: error: cannot write {args.output}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return SOME_FAILED if failed else DONE


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rewriter",
        description="Rewrite prompts into dense captions, with every word of speech kept.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", type=Path, required=True, help="prompts, .txt or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="where the captions go, .txt or .jsonl")
    parser.add_argument("--backend", choices=get_args(BackendName), default="auto", help="default: %(default)s")
    parser.add_argument("--base-url", help="the server (default: NAVA_REWRITER_URL, else http://127.0.0.1:8000/v1)")
    parser.add_argument("--concurrency", type=int, default=32, help="prompts at once, for a server; default: 32")
    parser.add_argument("--model", help="name on the server (default: its first); for transformers a hub id or folder")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds without a sign of life from the server")
    parser.add_argument("--four-bit", action="store_true", help="transformers: 4-bit weights, needs bitsandbytes")
    parser.add_argument("--device", help="transformers: cuda or cpu (default: the best there is)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
