"""`python -m nava_core.engine.launch ARGUMENTS`: torchrun that ends, with its workers, when its standard input does.

The app holds the other end of that pipe, so that no worker outlives it, however it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    threading.Thread(target=_end_with_the_app, name="nava-launch", daemon=True).start()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            sys.stderr.write(f"rank {rank} ended with exit code {failure.exitcode}\n")
        sys.exit(1)
    except SignalException:
        sys.exit(1)


def _end_with_the_app() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
