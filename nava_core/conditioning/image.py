"""The clip's first frame: any picture -> the clip's size, in [-1, 1]."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from nava_core.request import RequestError


def load_first_frame(image: str | os.PathLike[str] | Image.Image | np.ndarray, width: int, height: int) -> torch.Tensor:
    """A picture as the clip's first frame: float32 `(channels=3, frames=1, height, width)` in [-1, 1].

    It is turned as its EXIF orientation says, laid over black where it is transparent, scaled to cover the clip's size
    and cut to it at the centre (Lanczos). image: a path, a PIL image, or an array `(height, width)` or `(height, width,
    1|3|4)` of bytes or of floats in [0, 1]. Raises RequestError where it cannot be read.
    """
    picture = ImageOps.fit(_as_rgb(_open(image)), (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(1)  # (h, w, c) -> (c, 1, h, w)


def _open(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, str | os.PathLike):
        raise RequestError(
            "image", f"the first frame is a {type(image).__name__}; give a path, a PIL image or an array"
        )
    path = Path(image)
    if not path.is_file():
        raise RequestError("image", f"the first-frame image {path} does not exist; check the path")
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(
            "image", f"{path.name} cannot be read as an image ({error}); save it as PNG or JPEG"
        ) from error


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    pixels = array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array
    shape_fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not shape_fits or 0 in shape or (pixels.dtype != np.uint8 and pixels.dtype.kind != "f"):
        raise RequestError(
            "image",
            f"the first-frame array has the shape {shape} and the type {array.dtype}; give (height, width, 3) as bytes "
            "or as floats in [0, 1]",
        )
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0.0 and high <= 1.0):
            raise RequestError("image", f"the first-frame array runs from {low:g} to {high:g}; give floats in [0, 1]")
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion clips at 255
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise RequestError(
                "image", f"the first frame has grey values from {grey.min()} to {grey.max()}; save it as an 8-bit PNG"
            )
        picture = Image.fromarray(np.rint(grey / 257.0).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    if picture.mode == "F":
        raise RequestError("image", "the first frame has floating-point pixels; save it as an 8-bit PNG or JPEG")
    return picture.convert("RGB")
