"""Starts and ends every command: flags, logging, compilation cache, and one line for bad input."""

import difflib
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
from vdm_jax.released import removed_key


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`. Bad input ends with one line and status 2, without a traceback."""
    if "--help" in sys.argv[1:]:
        print(main.__globals__["__doc__"], flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        # --image-at means --image_at.
        words = [re.sub(r"^--[a-z-]+", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in sys.argv]
        if rest := flags.FLAGS(words)[1:]:
            raise InputError(f"{rest[0]!r} is not a flag; see --help")
    except Exception as error:  # a config file is a program, so a bad value may raise anything
        _fail(_unknown_key(error) or _in_config_file(error) or error)

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("absl", "jax", "orbax", "tensorstore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    gc.set_threshold(100_000)  # tracing makes millions of objects and almost no garbage
    try:
        cache_compilations()
        main()
    except InputError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def read_config_flag(name: str = "config") -> ml_collections.ConfigDict:
    """Returns the config of a config-file flag. Raises InputError if flag or file is missing."""
    config = flags.FLAGS[name].value
    if config is None:
        raise InputError(f"--{name}=configs/<experiment>.py is needed")
    try:
        config.lock()
    except OSError as error:  # the flag delays this error until the config is used
        file = config_flags.get_config_filename(flags.FLAGS[name])
        raise InputError(f"--{name}={file} cannot be read: {str(error).split(': ', 1)[-1]}") from error
    return config


def check_out(file: str | None) -> None:
    """Raises InputError if the file of --out cannot be written; None is no file."""
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
    """Returns a line about a key that a config lacks, if that is what ml_collections raised."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    group, key = frame.f_locals.get("self"), frame.f_locals.get("key", frame.f_locals.get("attribute"))
    if not isinstance(error, KeyError | AttributeError) or not isinstance(group, ml_collections.ConfigDict):
        return None
    # The whole key is in the flag or in the line of the config file.
    sources = sys.argv + [summary.line or "" for summary in traceback.extract_tb(error.__traceback__)]
    for path in re.findall(r"config\.([\w.]+)", "\n".join(sources)):
        if line := removed_key(path):
            return InputError(line)
    close = difflib.get_close_matches(str(key), map(str, group), n=1, cutoff=0.75)
    hint = f"did you mean {close[0]!r}?" if close else "a new key of an open group is set in the config file"
    return InputError(f"{key!r} is not in the config; {hint}")


def _in_config_file(error: Exception) -> InputError | None:
    """Returns a line about an error that a config file raised; ml_collections wraps some in a whole traceback."""
    flag, wrapped, text = str(error).strip().partition("Error whilst parsing config file:")
    if wrapped:
        return InputError(f"{flag}{text.splitlines()[-1]}")
    if isinstance(error, flags.Error | InputError):  # the message is complete
        return None
    words = [word for word in sys.argv if word.startswith("--config")]
    return InputError(f"{' '.join(words[:1])}: {type(error).__name__}: {error}") if words else None


def _fail(error: Exception) -> None:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
