"""Commands as a user gives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def run():
    """Runs a script of experiments/ in a folder; returns what it prints, (stdout, stderr)."""

    def run(folder, script, *arguments):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        command = [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run
