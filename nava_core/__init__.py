"""The NAVA model and everything that runs it.

Names are imported when first used, so that a page or a script that only builds requests does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nava_core.checkpoint import load_pipeline
    from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
    from nava_core.models.transformer_nava import NavaTransformer3DModel
    from nava_core.pipeline import NavaPipeline, NavaPipelineOutput
    from nava_core.request import GenerationCancelled, GenerationRequest, Guidance, ModelSpec, RequestError
    from nava_core.speech import parse_speech

_HOMES = {
    "GenerationCancelled": "request",
    "GenerationRequest": "request",
    "Guidance": "request",
    "ModelSpec": "request",
    "NavaPipeline": "pipeline",
    "NavaPipelineOutput": "pipeline",
    "NavaTransformer3DModel": "models.transformer_nava",
    "ReDimNetSpeakerEncoder": "models.speaker_encoder",
    "RequestError": "request",
    "load_pipeline": "checkpoint",
    "parse_speech": "speech",
}

__all__ = [
    "GenerationCancelled",
    "GenerationRequest",
    "Guidance",
    "ModelSpec",
    "NavaPipeline",
    "NavaPipelineOutput",
    "NavaTransformer3DModel",
    "ReDimNetSpeakerEncoder",
    "RequestError",
    "load_pipeline",
    "parse_speech",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
