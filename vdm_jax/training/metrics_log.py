"""Reports on a training run: a progress line, `metrics.jsonl`, and TensorBoard."""

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

from vdm_jax.files import read_json_lines, write_text


class MetricsLog:
    """Collects the metrics of steps, and writes a line when it is due; TensorBoard needs TensorFlow (through clu)."""

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, start: int):
        self._config, self._pending = config, []
        self._since, self._last_step = time.perf_counter(), start
        self._first: tuple[float, int] | None = None
        self._file = self._board = None
        if jax.process_index() == 0:
            path = workdir / "metrics.jsonl"
            # Lines of steps that will be repeated are dropped, and a last line that was cut off.
            kept = [json.dumps(line) + "\n" for line in read_json_lines(path) if line["step"] <= start]
            write_text(path, "".join(kept))
            self._file = path.open("a")
            if config.tensorboard and importlib.util.find_spec("tensorflow"):
                from clu import metric_writers  # imports TensorFlow

                self._board = metric_writers.SummaryWriter(str(workdir / "tensorboard"))

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Keeps the metrics of a step on the device until a line is due."""
        self._pending.append(metrics)

    def write(self, step: int, schedule: optax.Schedule) -> dict[str, float]:
        """Averages the metrics since the last line, and writes them; a counter of skipped steps keeps its maximum."""
        steps = jax.device_get(self._pending)
        now = time.perf_counter()
        values: dict[str, Any] = {}
        for name in steps[0]:
            series = np.array([s[name] for s in steps], np.float64)
            finite = series[np.isfinite(series)]
            counter = name.startswith("skipped")
            values[name] = float(series.max() if counter else finite.mean() if finite.size else np.nan)
        # A skipped step does not change the optimizer's count of steps.
        updates = step - 1 - int(steps[-1]["skipped"]) + (int(steps[-1]["skipped_in_a_row"]) > 0)
        values |= {"learning_rate": float(schedule(updates)), "seconds": now - self._since}
        values["videos_per_second"] = (step - self._last_step) / values["seconds"] * self._config.batch_size
        self._pending, self._since, self._last_step = [], now, step
        if self._file is None:
            return values
        line = {"step": step} | {k: (v if np.isfinite(v) else None) for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, values)
            self._board.flush()
        if self._first is None:  # the first line includes the compilation
            self._first, time_left = (now, step), "compiled"
        else:
            first_time, first_step = self._first
            left = int((self._config.steps - step) * (now - first_time) / (step - first_step))
            time_left = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        skipped = f"  skipped {values['skipped']:.0f}" if values["skipped"] else ""
        _print(
            f"\rstep {step:>{len(str(self._config.steps))}}/{self._config.steps}  loss {values['loss']:.4f}"
            f"  grad {values['grad_norm']:.3f}  {values['videos_per_second']:.0f} videos/s"
            f"  {time_left}{skipped}  ",
            last=step == self._config.steps,
        )
        return values

    def close(self) -> None:
        for file in filter(None, (self._file, self._board)):
            file.close()


def _print(line: str, last: bool) -> None:
    """Prints a progress line over the one before; nothing after a terminal or the reader of a pipe has closed."""
    try:
        print(line, end="\n" if last or not sys.stderr.isatty() else "", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process
