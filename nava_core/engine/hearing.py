"""Voices' recordings -> speaker embeddings, also beside a run: the speaker encoder keeps no state."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nava_core.conditioning.speaker import embed_speakers
from nava_core.engine.failures import is_out_of_memory
from nava_core.engine.jobs import EngineError, JobError
from nava_core.engine.wire import Heard, Line
from nava_core.request import RequestError

if TYPE_CHECKING:
    from nava_core.engine.worker import Inbox
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)


def hear(pipeline: NavaPipeline, reference: Path) -> np.ndarray:
    """The embedding of a recording, float32 (192,). Raises RequestError, or EngineError for all else."""
    if pipeline.speaker_encoder is None:
        raise EngineError(f"{pipeline.spec.name} has no speaker encoder, so it cannot hear a voice")
    try:
        return embed_speakers(pipeline.speaker_encoder, [reference])[0].numpy()
    except RequestError:
        raise
    except Exception as error:
        logger.exception("%s could not be heard", reference.name)
        words = "there was not enough memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        raise EngineError(f"{reference.name} could not be heard: {words}") from error


def answer_questions(pipeline: NavaPipeline, line: Line, inbox: Inbox) -> None:
    """Answer what the app asks this worker of voices, on a thread of its own, as long as the process lives."""

    def work() -> None:
        while True:
            question = inbox.question()
            answer: np.ndarray | JobError
            try:
                answer = hear(pipeline, question.reference)
            except RequestError as error:
                answer = JobError(str(error), error.field, "request")
            except EngineError as error:
                answer = JobError(str(error), kind=error.kind)
            try:
                line.send(Heard(question.id, answer))
            except OSError:
                return  # the app is gone, and the inbox ends this process

    threading.Thread(target=work, name="nava-hearing", daemon=True).start()
