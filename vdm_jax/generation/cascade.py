"""Cascades (Ho et al. 2021): each stage enlarges the videos of the stage before it, or doubles their frame rate.

A single pipeline is a cascade of one stage.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.generation.modes import Task, next_stage
from vdm_jax.generation.pipeline import Pipeline
from vdm_jax.generation.prompts import check_travel, read_travel
from vdm_jax.generation.settings import Settings
from vdm_jax.generation.windows import changes_at, generate, windows_of
from vdm_jax.typing import Float


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A pipeline with its checked input.

    Args:
        task: of a later stage only the shape counts, as its videos are not drawn yet.
        windows: that draw the task.
        changes: of the pipeline's settings; `settings` has them.
    """

    pipeline: Pipeline
    task: Task
    windows: Sequence[slice]
    changes: Mapping[str, Any]
    settings: Settings


def plan(
    pipelines: Sequence[Pipeline],
    task: Task,
    prompts: Sequence[str],
    changes: Sequence[Mapping[str, Any]],
    *,
    context: int | None = None,
    seed: int = 0,
    negative: str = "",
) -> list[Stage]:
    """Plans the windows and checks the settings of all stages; draws nothing.

    Args:
        task: of the first pipeline.
        changes: of the settings, one mapping for each pipeline.
        context, seed, negative: arguments of `generation.windows.generate`.

    Raises:
        InputError: an argument that does not fit a pipeline, or pipelines that do not fit each other.
    """
    travels = [read_travel(prompt) for prompt in prompts]
    if len(pipelines) > 1 and any(len(travel) > 1 for travel in travels):
        raise InputError("a cascade takes prompts that hold for the whole video")
    texts = [text for travel in travels for text in travel.values()]
    stages: list[Stage] = []
    for pipeline, change in zip(pipelines, changes, strict=True):
        if stages:
            task = next_stage(pipeline.model, task.video, task.fps)
        task_settings = {"strength": task.strength, "coarse": task.coarse}
        settings, _ = pipeline.check(texts, seed=seed, negative=negative, **task_settings, **change)
        windows = windows_of(pipeline, task, context)
        check_travel(prompts, changes_at(pipeline, task, windows))
        stages.append(Stage(pipeline, task, windows, change, settings))
    return stages


def draw(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    folder: Path,
    progress: Callable[..., Any],
    *,
    batch_size: int = 16,
    **kwargs: Any,
) -> tuple[list[Float[np.ndarray, "L H W C"]], float]:
    """Draws one video for each prompt; returns the videos of the last stage, and their frames a second.

    Complete windows lie in files `folder/.stage*`. An interrupted call continues from them.

    Args:
        progress: makes a progress bar, as `tqdm` does.
        kwargs: arguments of `generation.windows.generate`.
    """
    task = stages[0].task
    starts = range(0, len(prompts), batch_size)
    batches = [(start, prompts[start : start + batch_size], task) for start in starts]
    for number, stage in enumerate(stages):
        if number:
            tasks = [next_stage(stage.pipeline.model, video, task.fps) for video in videos]
            task, batches = tasks[0], [(i, [prompts[i]], tasks[i]) for i in range(len(prompts))]
        videos, count = [], len(stage.windows)
        unit = "window" if count > 1 else "video"
        with progress(total=count * len(prompts), unit=unit, desc="sampling") as bar:
            for first, batch, batch_task in batches:
                where = {"first": first, "stage": number, "partial": folder / f".stage{number}-{first}.npy"}
                options = {"batch_size": batch_size} | where | kwargs | stage.changes
                for drawn in generate(stage.pipeline, batch, batch_task, **options):
                    bar.update(len(drawn))
                videos += list(drawn)
    return videos, task.fps
