"""The results of a study: a file for each cell, written whole or not at all."""

import dataclasses
import json
import logging
import math

import numpy as np

from vdm_jax.evaluation.confidence import Interval
from vdm_jax.files import whole_file, write_text
from vdm_jax.studies.study import Cell
from vdm_jax.video import to_uint8

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of a cell, under the name "", or of all floors, each under its name."""

    scores: dict[str, dict[str, Interval]]
    cost: dict[str, float | int]
    networks: dict[str, str]  # hash of each network that the metrics need
    machine: str
    prompts: list[str]  # of the first videos, which are saved next to the result


def read_result(cell: Cell) -> Result | None:
    """The result of a cell, or None. A damaged file is renamed, with a warning."""
    try:
        values = json.loads(cell.file.read_text())
        for rows in values["scores"].values():
            for metric, row in rows.items():
                rows[metric] = Interval(**{name: math.nan if x is None else float(x) for name, x in row.items()})
        return Result(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        aside = cell.file.with_suffix(".damaged")
        cell.file.replace(aside)
        reason = " ".join(str(error).split())
        log.warning("%s is damaged (%s): renamed to %s and measured again", cell.file, reason, aside.name)
        return None


def write_result(cell: Cell, result: Result, videos: np.ndarray) -> None:
    """Writes a result and, next to it, its first videos; each file whole or not at all."""
    values = dataclasses.asdict(result)
    for rows in values["scores"].values():
        for metric, row in rows.items():
            rows[metric] = {name: x if math.isfinite(x) else None for name, x in row.items()}
    with whole_file(cell.file.with_suffix(".npy")) as part:
        np.save(part, to_uint8(videos))
    write_text(cell.file, json.dumps(values, indent=1) + "\n")  # last: a result always has its videos
