"""Metrics of single videos without trained weights: smoothness, flicker, motion, and similarity to a reference.

Metrics without a reference are `metric(videos) -> B`, with one are `metric(videos, reference) -> B`. Videos are
`B T H W C` in [-1, 1]. Each video has one number; confidence.py makes a mean and its interval. Brightness is measured
as a share of its range. If VBench (Huang et al. 2024) has a metric of the same name, the docstring says what differs.
Optical flow is DIS (Kroeger et al. 2016) by OpenCV, on CPU, of grey 8-bit frames. It needs the extra `evaluation` and
12 pixels on the longer side. A still picture has the best value of all metrics without a reference except
`dynamic_degree`: print it, and the floors of score.py, next to them.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, UInt8
from vdm_jax.video import to_uint8

Clips = Float[Array | np.ndarray, "B T H W C"]
PerVideo = Float[np.ndarray, "B"]
Flow = Float[np.ndarray, "H W 2"]  # by how many columns and rows each pixel moves between two frames
Image = Float[np.ndarray, "H W C"]


def flicker(videos: Clips) -> PerVideo:
    """Mean |difference| of successive frames over all pixels; lower is better.

    VBench's temporal flickering is 1 − this value, over the videos that its flow (RAFT) finds still.
    """
    return (np.abs(np.diff(_checked(videos, frames=2), axis=1)).mean(-1) / 2).mean((1, 2, 3))


def motion_smoothness(videos: Clips) -> PerVideo:
    """1 − mean |error| of every second frame when it is interpolated from its two neighbours; higher is better.

    In VBench a network (AMT-S) interpolates. Here both neighbours are warped by half of the flow between them, which is
    assumed to be the same at the same pixel of the middle frame (Jiang et al. 2018, before their networks).
    """
    flow, videos = _estimator(videos), _checked(videos, frames=3)

    def error(before: Image, middle: Image, after: Image) -> float:
        half = (flow(before, after) - flow(after, before)) / 4
        return float(np.abs((_warp(before, -half) + _warp(after, half)) / 2 - middle).mean() / 2)

    return np.array([1 - np.mean([error(*v[t - 1 : t + 2]) for t in range(1, len(v) - 1, 2)]) for v in videos])


def warping_error(videos: Clips) -> PerVideo:
    """Mean squared difference of each frame from the next frame warped to it, over visible pixels; lower is better.

    From Lai et al. 2018, on pixels in [0, 1]. They took the flow of the video before it was processed; here it is the
    flow of the video itself. Pairs without visible pixels are left out (in Lai's code they count as 0). A video of such
    pairs alone gives NaN. Print `occluded_share` next to it: pixels that cannot be matched are not in the error.
    """
    errors = [[error[mask].mean() for error, mask in pairs if mask.any()] for pairs in _warped(videos)]
    return np.array([float(np.mean(values)) if values else np.nan for values in errors])


def occluded_share(videos: Clips) -> PerVideo:
    """The share of pixels that `warping_error` leaves out; lower is better."""
    return np.array([1 - np.mean([mask.mean() for _, mask in pairs]) for pairs in _warped(videos)])


def dynamic_degree(videos: Clips) -> PerVideo:
    """Mean length of the flow between successive frames, in pixels.

    VBench's is the share of videos in which the mean of the strongest 5 % (by RAFT, at 8 frames a second) is above 6
    pixels for a smaller side of 256, in a quarter of the frames. In areas without texture the flow is filled in from
    around. Neither high nor low is better: compare with real videos.
    """
    flow, clips = _estimator(videos), _checked(videos, frames=2)
    speeds = [[np.linalg.norm(flow(*pair), axis=-1).mean() for pair in itertools.pairwise(video)] for video in clips]
    return np.array(speeds, np.float64).mean(1)


def subject_consistency(features: Float[Array | np.ndarray, "B T F"]) -> PerVideo:
    """Mean cosine of the features of each frame with the features of the first and of the previous frame.

    Higher is better. As in VBench, negative cosines count as 0; VBench takes features of DINO ViT-B/16.
    """
    x = np.asarray(features, np.float64)
    if x.shape[1] < 2:
        raise InputError(f"frames={x.shape[1]} must be at least 2")
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    first, before = ((x[:, 1:] * other).sum(-1).clip(0) for other in (x[:, :1], x[:, :-1]))
    return ((first + before) / 2).mean(1)


def psnr(videos: Clips, reference: Clips) -> PerVideo:
    """10 log₁₀(range² / mean squared error) in dB of each frame, then the mean over frames; higher is better.

    A frame that equals its reference has 100, the largest value: leave out frames that are known.
    """
    a, b = _same_shape(videos, reference)
    return (10 * np.log10(4 / np.maximum(np.square(a - b).mean((2, 3, 4)), 4e-10))).mean(1)


def ssim(videos: Clips, reference: Clips) -> PerVideo:
    """Structural similarity (Wang et al. 2004, eq. 13) of each frame and channel, then the mean.

    Gaussian window of 11 pixels with σ = 1.5, at every position inside the frame, K₁ = 0.01, K₂ = 0.03, on brightness
    in [0, 1], at full resolution. At most 1; higher is better.
    """
    from scipy.ndimage import correlate1d

    a, b = _same_shape(videos, reference)
    if min(a.shape[2:4]) < 11:
        raise InputError(f"frames of {a.shape[2]}×{a.shape[3]} must be at least 11×11, the window")
    window = np.exp(-np.square(np.arange(-5, 6) / 1.5) / 2)
    window /= window.sum()

    def mean(x: Float[np.ndarray, "T H W C"]) -> Float[np.ndarray, "T h w C"]:
        return correlate1d(correlate1d(x, window, axis=1), window, axis=2)[:, 5:-5, 5:-5]

    def similarity(x: Float[np.ndarray, "T H W C"], y: Float[np.ndarray, "T H W C"]) -> float:
        x, y = ((z.astype(np.float64) + 1) / 2 for z in (x, y))  # the measure depends on where black is
        mx, my, c1, c2 = mean(x), mean(y), 0.01**2, 0.03**2
        variances, covariance = mean(x * x) - mx**2 + mean(y * y) - my**2, mean(x * y) - mx * my
        return float(((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (variances + c2))).mean())

    return np.array([similarity(x, y) for x, y in zip(a, b, strict=True)])


# ------------------------------------------------------------------------------------------------ optical flow


def _estimator(videos: Clips) -> Callable[[Image, Image], Flow]:
    """Returns a function from two images to their flow. Raises InputError without OpenCV and for unfit videos."""
    try:
        import cv2
    except ImportError as error:
        raise InputError("optical flow needs OpenCV: pip install vdm_jax[evaluation]") from error
    *_, height, width, channels = videos.shape
    if max(height, width) < 12:
        raise InputError(f"frames of {height}×{width} are too small for optical flow: one side must be 12 or more")
    if channels not in (1, 3):
        raise InputError(f"channels={channels} must be 1 (grey) or 3 (RGB) for optical flow")
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def grey(image: Image) -> UInt8[np.ndarray, "H W"]:
        image = to_uint8(image)
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 3 else image[..., 0]

    return lambda a, b: dis.calc(grey(a), grey(b), None)


def _warped(videos: Clips) -> Iterator[list[tuple[Float[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]]]:
    """Yields for each video a list over pairs of frames: the squared error after warping, and the visible pixels."""
    flow = _estimator(videos)
    for video in _checked(videos, frames=2):
        pairs = []
        for frame, after in itertools.pairwise(video):
            forward = flow(frame, after)
            error = np.square((_warp(after, forward) - frame) / 2).mean(-1)
            pairs.append((error, ~_occluded(forward, flow(after, frame))))
        yield pairs


def _warp(image: Image, flow: Flow) -> Image:
    """Samples the image where the flow points to, bilinearly; outside, the border is repeated."""
    from scipy.ndimage import map_coordinates  # OpenCV rounds coordinates to 1/32 of a pixel

    places = np.indices(flow.shape[:2]) + np.moveaxis(flow, -1, 0)[::-1]
    return np.stack([map_coordinates(c, places, order=1, mode="nearest") for c in np.moveaxis(image, -1, 0)], axis=-1)


def _occluded(forward: Flow, backward: Flow) -> Bool[np.ndarray, "H W"]:
    """Pixels where forward and backward flow disagree, and edges of motion (Ruder et al. 2016, as in Lai's code)."""
    back = _warp(backward, forward)
    length = np.square(forward).sum(-1)
    inconsistent = np.square(forward + back).sum(-1) > 0.01 * (length + np.square(back).sum(-1)) + 0.5
    steps = [np.diff(forward, axis=axis, append=forward.take([-1], axis)) for axis in (0, 1)]
    edge = sum(np.square(step).sum(-1) for step in steps) > 0.01 * length + 0.002
    return inconsistent | edge


# ------------------------------------------------------------------------------------------------ input


def _checked(videos: Clips, frames: int = 1) -> Float[np.ndarray, "B T H W C"]:
    """A NumPy array, float32 or float64. Raises InputError for too few frames and for pixels outside [-1, 1]."""
    videos = np.asarray(videos)
    videos = videos.astype(np.promote_types(videos.dtype, np.float32), copy=False)
    if videos.shape[1] < frames:
        raise InputError(f"frames={videos.shape[1]} must be at least {frames}")
    low, high = (float(f(videos)) for f in (np.min, np.max))
    if not (low >= -1.001 and high <= 1.001):  # also for NaN
        raise InputError(f"videos have pixels from {low:g} to {high:g}; they must be in [-1, 1]")
    return videos


def _same_shape(videos: Clips, reference: Clips) -> tuple[np.ndarray, np.ndarray]:
    if videos.shape != reference.shape:
        raise InputError(f"videos={videos.shape} and reference={reference.shape} must have one shape")
    return _checked(videos), _checked(reference)
