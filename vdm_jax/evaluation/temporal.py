"""Measurements of single videos without trained weights: smoothness, flicker, motion, and likeness to a truth.

Metrics of videos alone are `metric(videos) -> B`; those against a truth are `metric(videos, reference) -> B`. Videos
are `B T H W C` in [-1, 1]; there is one number for each, for a mean and its interval (confidence.py). Brightness is
measured as a share of its range. Where VBench (Huang et al. 2024) has a metric by that name, the docstring says
what differs. Optical flow is DIS (Kroeger et al. 2016) by OpenCV, on CPU, of grey 8-bit frames; it needs the
extra `evaluation` and 12 pixels on the longer side. All these can be met by a still picture: print
`dynamic_degree`, and the floors of moving_digits.py, beside them.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Bool, Float, UInt8
from vdm_jax.video import to_uint8

Clips = Float[Array | np.ndarray, "B T H W C"]
PerVideo = Float[np.ndarray, "B"]
Flow = Float[np.ndarray, "H W 2"]  # columns, rows: where each pixel of one frame is in the other, in pixels
Image = Float[np.ndarray, "H W C"]


def flicker(videos: Clips, counted: Bool[np.ndarray, "B P H W"] | None = None) -> PerVideo:
    """Mean |difference| of successive frames, over all pixels or those `counted` in each pair; lower is better.

    VBench's temporal flickering is 1 − this, over all pixels of those videos that its flow (RAFT) finds still. Of a
    video that moves, `counted=static_parts(videos)` leaves out what moves; a video with nothing left gives NaN.
    """
    change = np.abs(np.diff(_checked(videos, frames=2), axis=1)).mean(-1) / 2
    if counted is None:
        return change.mean((1, 2, 3))
    if counted.shape != change.shape:
        raise InputError(f"counted={counted.shape} must be {change.shape}, the pairs of frames")
    total = counted.sum((1, 2, 3))
    return np.where(total > 0, (change * counted).sum((1, 2, 3)) / np.maximum(total, 1), np.nan)


def static_parts(videos: Clips, below: float | None = None) -> Bool[np.ndarray, "B P H W"]:
    """Pixels of each pair of frames where the flow is at most `below` pixels long.

    The default is 3 pixels in 256 of the smaller side: the threshold of VBench's filter, which takes or leaves
    whole videos, by the fastest 2 % of each frame.
    """
    limit = 3 * min(videos.shape[2:4]) / 256 if below is None else below
    return np.stack([[length <= limit for length in lengths] for lengths in _lengths(videos)])


def motion_smoothness(videos: Clips) -> PerVideo:
    """1 − mean |error| of every second frame when interpolated from its two neighbours; higher is better.

    VBench's, where a network (AMT-S) interpolates. Here both neighbours are warped by half of the flow between them,
    which is taken to be the same at the same pixel of the middle frame (Jiang et al. 2018, before their networks).
    """
    flow = _estimator(videos)

    def error(before: Image, middle: Image, after: Image) -> float:
        half = (flow(before, after) - flow(after, before)) / 4
        return float(np.abs((_warp(before, -half) + _warp(after, half)) / 2 - middle).mean() / 2)

    videos = _checked(videos, frames=3)
    return np.array([1 - np.mean([error(*v[t - 1 : t + 2]) for t in range(1, len(v) - 1, 2)]) for v in videos])


def warping_error(videos: Clips) -> PerVideo:
    """Mean squared difference of each frame from the next one warped to it, where that is visible; lower is better.

    Lai et al. 2018, of pixels in [0, 1]; their flow was of the video before it was processed, here it is the video's
    own. Pairs with nothing visible are left out (in Lai's code they count as 0); a video of only such pairs
    gives NaN. Print `occluded_share` beside: what cannot be matched is not in the error.
    """
    return np.array([_mean([error[seen].mean() for error, seen in pairs if seen.any()]) for pairs in _warped(videos)])


def occluded_share(videos: Clips) -> PerVideo:
    """Share of pixels that `warping_error` leaves out; lower is better."""
    return np.array([1 - np.mean([seen.mean() for _, seen in pairs]) for pairs in _warped(videos)])


def dynamic_degree(videos: Clips, strongest: float = 1.0) -> PerVideo:
    """Mean length of the flow between successive frames in pixels, over the `strongest` share of each frame.

    VBench's is the share of videos where the mean of the strongest 0.05 (by RAFT, at 8 frames a second) is above
    6 pixels in 256 of the smaller side in a quarter of the frames. Flow fills what has no texture from around it.
    Neither high nor low is better: compare with real videos.
    """
    if not 0 < strongest <= 1:
        raise InputError(f"strongest={strongest:g} must be a share above 0 and up to 1")
    count = max(1, round(strongest * videos.shape[2] * videos.shape[3]))
    means = [[np.sort(length, axis=None)[-count:].mean() for length in lengths] for lengths in _lengths(videos)]
    return np.mean(means, axis=1)


def subject_consistency(features: Float[Array | np.ndarray, "B T F"]) -> PerVideo:
    """Mean cosine of each frame's features with the first frame's and with the frame's before; higher is better.

    VBench's, negative cosines as 0, with DINO ViT-B/16's features there. Raises InputError below two frames.
    """
    x = np.asarray(features, np.float64)
    if x.shape[1] < 2:
        raise InputError(f"frames={x.shape[1]} must be at least 2")
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    first, before = ((x[:, 1:] * other).sum(-1).clip(0) for other in (x[:, :1], x[:, :-1]))
    return ((first + before) / 2).mean(1)


def psnr(videos: Clips, reference: Clips) -> PerVideo:
    """10 log₁₀(range² / mean squared error) in dB, frame by frame, then the mean; higher is better.

    At most 100, which a frame that equals its reference has: leave out the frames that were given.
    """
    a, b = _alike(videos, reference)
    return (10 * np.log10(4 / np.maximum(np.square(a - b).mean((2, 3, 4)), 4e-10))).mean(1)


def ssim(videos: Clips, reference: Clips) -> PerVideo:
    """Structural similarity (Wang et al. 2004, eq. 13), frame by frame and channel by channel, then the mean.

    Gaussian window of 11 pixels with σ = 1.5 wherever it fits whole, K₁ = 0.01, K₂ = 0.03, on brightness in [0, 1],
    at full resolution. At most 1; higher is better. Raises InputError for frames of fewer than 11 pixels a side.
    """
    from scipy.ndimage import correlate1d

    a, b = _alike(videos, reference)
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
    """Where each pixel of the first image is in the second. Raises InputError where flow cannot be had."""
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


def _lengths(videos: Clips) -> Iterator[list[Float[np.ndarray, "H W"]]]:
    """Of each video, the lengths of the flow from each frame to the next."""
    flow = _estimator(videos)
    for video in _checked(videos, frames=2):
        yield [np.linalg.norm(flow(a, b), axis=-1) for a, b in itertools.pairwise(video)]


def _warped(videos: Clips) -> Iterator[list[tuple[Float[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]]]:
    """Of each video and pair of frames, the squared error of the next frame warped back, and what is visible."""
    flow = _estimator(videos)
    for video in _checked(videos, frames=2):
        pairs = []
        for here, after in itertools.pairwise(video):
            forward = flow(here, after)
            error = np.square((_warp(after, forward) - here) / 2).mean(-1)
            pairs.append((error, ~_occluded(forward, flow(after, here))))
        yield pairs


def _warp(image: Image, flow: Flow) -> Image:
    """The image where the flow points to: bilinear, and its border beyond it."""
    from scipy.ndimage import map_coordinates  # OpenCV rounds coordinates to 1/32 of a pixel

    at = np.indices(flow.shape[:2]) + np.moveaxis(flow, -1, 0)[::-1]
    return np.stack([map_coordinates(c, at, order=1, mode="nearest") for c in np.moveaxis(image, -1, 0)], axis=-1)


def _occluded(forward: Flow, backward: Flow) -> Bool[np.ndarray, "H W"]:
    """Where there and back does not meet, and where motion has an edge (Ruder et al. 2016, as in Lai's code)."""
    back = _warp(backward, forward)
    length = np.square(forward).sum(-1)
    missed = np.square(forward + back).sum(-1) > 0.01 * (length + np.square(back).sum(-1)) + 0.5
    steps = [np.diff(forward, axis=axis, append=forward.take([-1], axis)) for axis in (0, 1)]
    edge = sum(np.square(step).sum(-1) for step in steps) > 0.01 * length + 0.002
    return missed | edge


# ------------------------------------------------------------------------------------------------ input


def _checked(videos: Clips, frames: int = 1) -> Float[np.ndarray, "B T H W C"]:
    """In NumPy, float32 at least. Raises InputError for too few frames and for pixels outside [-1, 1]."""
    videos = np.asarray(videos)
    videos = videos.astype(np.promote_types(videos.dtype, np.float32), copy=False)
    if videos.shape[1] < frames:
        raise InputError(f"frames={videos.shape[1]} must be at least {frames}")
    low, high = (float(f(videos)) for f in (np.min, np.max))
    if not (low >= -1.001 and high <= 1.001):  # also for NaN
        raise InputError(f"videos have pixels from {low:g} to {high:g}; they must be in [-1, 1]")
    return videos


def _alike(videos: Clips, reference: Clips) -> tuple[np.ndarray, np.ndarray]:
    if videos.shape != reference.shape:
        raise InputError(f"videos={videos.shape} and reference={reference.shape} must have one shape")
    return _checked(videos), _checked(reference)


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else float("nan")
