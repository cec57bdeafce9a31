"""The comparisons need PyTorch's libraries: without them, as in `make test`, no file here is collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
