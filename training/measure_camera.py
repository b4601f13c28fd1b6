"""What the camera does in a clip, from pixels alone: which shift or scale brings later frames onto earlier ones."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Frames that are compared, so far apart that a camera has moved by pixels.
GAP = 12
SHIFTS = np.arange(-0.16, 0.161, 0.02)
SCALES = np.exp(np.arange(-0.15, 0.151, 0.03))
# Over a clip: what is at least a pan (of the shorter side) or a push (in nepers).
LEAST_PAN = 0.13
LEAST_PUSH = 0.12


def measure_camera(frames: np.ndarray) -> str:
    """One of `canvas.CAMERAS`, for uint8 `frames` (frames, height, width, 3)."""
    shift, push = camera_motion(frames)
    if abs(push) / LEAST_PUSH > abs(shift) / LEAST_PAN and abs(push) > LEAST_PUSH:
        return "push in" if push > 0 else "pull out"
    if abs(shift) > LEAST_PAN:
        return "pan left" if shift > 0 else "pan right"
    return "still"


def camera_motion(frames: np.ndarray) -> tuple[float, float]:
    """How far the picture moves to the right, in lengths of the shorter side, and grows, in nepers, over the clip."""
    grey = ndimage.gaussian_filter(frames.astype(np.float32).mean(-1), (0, 1.2, 1.2))[:, ::2, ::2]
    gap = min(GAP, len(grey) - 1)
    steps = [_step(grey[start], grey[start + gap]) for start in range(0, len(grey) - gap, gap)]
    shift, push = np.sum(steps, axis=0)
    return float(shift), float(push)


def _step(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The best single shift or single scale between two frames."""
    side = min(before.shape)
    still = _error(before, after, 0.0, 1.0)
    found = [(_error(before, after, shift * side, 1.0), float(shift), 0.0) for shift in SHIFTS]
    found += [(_error(before, after, 0.0, scale), 0.0, float(np.log(scale))) for scale in SCALES]
    error, shift, push = min(found)
    # Where nothing tells one motion from none, there was none.
    return (shift, push) if error < 0.9 * still else (0.0, 0.0)


def _error(before: np.ndarray, after: np.ndarray, shift: float, scale: float) -> float:
    """Mean absolute difference of `before` and `after` brought back, where both are seen."""
    height, width = before.shape
    rows = (np.arange(height) - (height - 1) / 2) * scale + (height - 1) / 2
    columns = (np.arange(width) - (width - 1) / 2) * scale + (width - 1) / 2 + shift
    inside_rows = (rows >= 0) & (rows <= height - 1)
    inside_columns = (columns >= 0) & (columns <= width - 1)
    rows, columns = rows[inside_rows], columns[inside_columns]
    top, left = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
    down, across = (rows - top)[:, None].astype(np.float32), (columns - left).astype(np.float32)
    upper = after[top][:, left] * (1 - across) + after[top][:, left + 1] * across
    lower = after[top + 1][:, left] * (1 - across) + after[top + 1][:, left + 1] * across
    back = upper * (1 - down) + lower * down
    return float(np.abs(back - before[np.ix_(inside_rows, inside_columns)]).mean())
