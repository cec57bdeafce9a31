"""What every command does first and last: flags, logging, the compilation cache, and one line for bad input."""

import logging
import os
import sys
from collections.abc import Callable

from absl import flags

from vdm_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; bad input ends in one line and exit status 2, without a traceback."""
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise InputError(f"{rest[0]!r} is not a flag; see --help")
    except InputError as error:
        _fail(error)
    except Exception as error:  # a config file is a program: what it may raise on a bad value has no limit
        _fail(error)

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("absl", "jax", "orbax", "tensorstore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    cache_compilations()
    try:
        main()
    except InputError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def cache_compilations() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/vdm_jax."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/vdm_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _fail(error: Exception) -> None:
    message = " ".join(str(error.args[0] if error.args else error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
