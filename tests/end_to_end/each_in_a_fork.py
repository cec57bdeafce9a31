"""Runs commands, each in a fork of one process that has imported everything: imports would cost seconds each time.

Reads lines of JSON from standard input, {"command": [script, argument, …], "folder": …}. Writes a line
[status, stdout, stderr] for each.
"""

import contextlib
import importlib
import json
import os
import pkgutil
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

import vdm_jax

for module in pkgutil.walk_packages(vdm_jax.__path__, "vdm_jax."):
    with contextlib.suppress(ImportError):  # a command that needs the module fails
        importlib.import_module(module.name)

TIMEOUT = 600  # seconds
warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # as in pyproject.toml


def status_of(command: list[str], folder: str, stdout: int, stderr: int) -> int:
    """Runs a command in a child, as `python command…` in the folder; returns its exit status."""
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
    request = json.loads(line)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        status = status_of(request["command"], request["folder"], stdout.fileno(), stderr.fileno())
        stdout.seek(0), stderr.seek(0)
        print(json.dumps([status, stdout.read(), stderr.read()]), flush=True)
