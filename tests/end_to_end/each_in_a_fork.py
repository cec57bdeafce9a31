"""Runs many commands, each in a fork of one process that has imported everything: a start would cost seconds each.

Reads [[script, argument, …], …] as JSON from standard input; writes [[status, stdout, stderr], …].
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import vdm_jax.generation.pipeline
import vdm_jax.training.loop  # noqa: F401


def status_of(command: list[str], stdout: int, stderr: int) -> int:
    """The exit status of a command, run in a child as `python command…` would."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.argv = command
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


results = []
for command in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        status = status_of(command, stdout.fileno(), stderr.fileno())
        stdout.seek(0), stderr.seek(0)
        results.append([status, stdout.read(), stderr.read()])
json.dump(results, sys.stdout)
