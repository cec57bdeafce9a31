"""What training says while it runs: a line of progress, and the numbers behind it."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from vdm_jax.files import write_text


class MetricsLog:
    """The progress line, `metrics.jsonl`, and TensorBoard through clu where TensorFlow is installed."""

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, start: int):
        self._config, self._pending = config, []
        self._since, self._last_step = time.perf_counter(), start
        self._first: tuple[float, int] | None = None
        self._file = self._board = None
        if jax.process_index() == 0:
            path = workdir / "metrics.jsonl"
            _drop_after(path, start)
            self._file = path.open("a")
            if config.tensorboard and importlib.util.find_spec("tensorflow"):
                from clu import metric_writers  # imports TensorFlow

                self._board = metric_writers.SummaryWriter(str(workdir / "tensorboard"))

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps a step's metrics on the device; they are fetched when a line is due."""
        self._pending.append(metrics)

    def write(self, step: int, schedule: optax.Schedule) -> dict[str, float]:
        """Averages what was added since the last line and writes it; of steps skipped in all or in a row, the most."""
        steps = jax.device_get(self._pending)
        now = time.perf_counter()
        values: dict[str, Any] = {}
        for name in steps[0]:
            series = np.array([s[name] for s in steps], np.float64)
            finite = series[np.isfinite(series)]
            counter = name.startswith("skipped")
            values[name] = float(series.max() if counter else finite.mean() if finite.size else np.nan)
        # A step that is skipped leaves the optimizer's count of steps as it was.
        updates = step - 1 - int(steps[-1]["skipped"]) + (int(steps[-1]["skipped_in_a_row"]) > 0)
        per_second = (step - self._last_step) / (now - self._since)
        values |= {
            "learning_rate": float(schedule(updates)),
            "videos_per_second": per_second * self._config.batch_size,
            "seconds": now - self._since,
        }
        self._pending, self._since, self._last_step = [], now, step
        if self._file is None:
            return values
        line = {"step": step} | {k: (v if np.isfinite(v) else None) for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, values)
            self._board.flush()
        if self._first is None:  # the steps of the first line waited for the compilation
            self._first, time_left = (now, step), "compiled"
        else:
            since, first_step = self._first
            left = int((self._config.steps - step) * (now - since) / (step - first_step))
            time_left = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        skipped = f"  skipped {values['skipped']:.0f}" if values["skipped"] else ""
        _say(
            f"\rstep {step:>{len(str(self._config.steps))}}/{self._config.steps}  loss {values['loss']:.4f}"
            f"  grad {values['grad_norm']:.3f}  {values['videos_per_second']:.0f} videos/s"
            f"  {time_left}{skipped}  ",
            stays=step == self._config.steps,
        )
        return values

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _say(line: str, stays: bool) -> None:
    """Prints a line of progress over the last one, if anybody reads: a terminal may be closed, a pipe's reader gone."""
    try:
        print(line, end="\n" if stays or not sys.stderr.isatty() else "", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process


def _drop_after(path: Path, step: int) -> None:
    """Removes lines of steps that will be done again, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    write_text(path, "".join(line + "\n" for line in kept))
