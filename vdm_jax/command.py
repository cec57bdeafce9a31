"""What every command does first and last: flags, logging, compilation cache, and one line for bad input."""

import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

import ml_collections
from absl import flags
from ml_collections import config_flags

from vdm_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; bad input ends in one line and status 2, without a traceback."""
    if "--help" in sys.argv[1:]:
        print(main.__globals__["__doc__"], flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        # --image-at is --image_at.
        words = [re.sub(r"^--[a-z-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in sys.argv]
        rest = flags.FLAGS(words)[1:]
        if rest:
            raise InputError(f"{rest[0]!r} is not a flag; see --help")
    except Exception as error:  # a config file is a program: what it may raise on a bad value has no limit
        _fail(_unknown_key(error) or _in_config_file(error) or error)

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("absl", "jax", "orbax", "tensorstore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    gc.set_threshold(100_000)  # tracing makes objects by the million, and next to no garbage
    try:
        cache_compilations()
        main()
    except InputError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def read_config_flag(name: str = "config") -> ml_collections.ConfigDict:
    """The config of a config-file flag.

    Raises:
        InputError: the flag is not given, or its file cannot be read.
    """
    config = flags.FLAGS[name].value
    if config is None:
        raise InputError(f"--{name}=configs/<experiment>.py is needed")
    try:
        config.lock()
    except OSError as error:  # the flag keeps it back until the config is used
        file = config_flags.get_config_filename(flags.FLAGS[name])
        raise InputError(f"--{name}={file} cannot be read: {str(error).split(': ', 1)[-1]}") from error
    return config


def check_out(file: str | None) -> None:
    """Raises InputError where the file of --out, if it is given, could not be written in the end."""
    if file and not (os.path.isdir(folder := os.path.dirname(file) or ".") and os.access(folder, os.W_OK)):
        raise InputError(f"--out={file} cannot be written: {folder} must be a folder to write into")


def cache_compilations() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/vdm_jax."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/vdm_jax"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _unknown_key(error: Exception) -> InputError | None:
    """The key that a config lacks, out of what ml_collections says of it."""
    text = str(error)
    key = re.search('Key "(.+?)" does not exist', text) or re.match(r"\W*(\w+)\W+(n?Did you mean|$)", text)
    *_, raised = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, KeyError | AttributeError) or not key or "ml_collections" not in raised.filename:
        return None
    hint = re.search('Did you mean "(.+?)"', text)
    more = f"did you mean {hint[1]!r}?" if hint else "a new key of an open group is set in the config file"
    return InputError(f"{key[1]!r} is not in the config; {more}")


def _in_config_file(error: Exception) -> InputError | None:
    """What a config file raised: as it is, or out of the traceback that ml_collections makes its message of."""
    flag, found, raised = str(error).strip().partition("Error whilst parsing config file:")
    if found:
        return InputError(f"{flag}{raised.splitlines()[-1]}")
    if isinstance(error, flags.Error | InputError):  # they say themselves what is wrong
        return None
    words = [word for word in sys.argv if word.startswith("--config")]
    return InputError(f"{' '.join(words[:1])}: {type(error).__name__}: {error}") if words else None


def _fail(error: Exception) -> None:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
