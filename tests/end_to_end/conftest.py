"""Commands as a user gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def outcome():
    """Runs a script in a folder; returns its status, stdout and stderr."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("each_in_a_fork.py"))],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def outcome(folder, script, *arguments):
        command = [str(script), *map(str, arguments)]
        server.stdin.write(json.dumps({"command": command, "folder": str(folder)}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    with server:
        yield outcome


@pytest.fixture(scope="session")
def run(outcome):
    """Runs a script of experiments/ in a folder; returns what it prints, (stdout, stderr)."""

    def run(folder, script, *arguments):
        status, stdout, stderr = outcome(folder, ROOT / "experiments" / script, *arguments)
        assert status == 0, stderr
        return stdout, stderr

    return run
