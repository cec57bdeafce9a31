"""Runs commands, each in a fork of one process that has imported everything: a start would cost seconds each.

Reads {"command": [script, argument, …], "folder": …} as lines of JSON from standard input; answers each with a line
[status, stdout, stderr].
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import scipy.ndimage  # noqa: F401
import tensorflow_datasets  # noqa: F401
import tqdm  # noqa: F401

import vdm_jax.evaluation.judge
import vdm_jax.evaluation.score
import vdm_jax.generation.finetune
import vdm_jax.generation.modes
import vdm_jax.generation.pipeline
import vdm_jax.generation.published
import vdm_jax.pages.human
import vdm_jax.pages.run_report
import vdm_jax.studies.jobs
import vdm_jax.studies.report
import vdm_jax.studies.run
import vdm_jax.training.loop  # noqa: F401

TIMEOUT = 600  # seconds
warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # as in pyproject.toml


def status_of(command: list[str], folder: str, stdout: int, stderr: int) -> int:
    """The exit status of a command, run in a child as `python command…` would in the folder."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.alarm(TIMEOUT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.chdir(folder)
        sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        status = status_of(asked["command"], asked["folder"], stdout.fileno(), stderr.fileno())
        stdout.seek(0), stderr.seek(0)
        print(json.dumps([status, stdout.read(), stderr.read()]), flush=True)
