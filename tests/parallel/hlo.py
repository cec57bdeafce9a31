"""Reads compiled programs."""

import re


def communicated(hlo, operation):
    """Yields (shape, name) of every array that the collective `operation` returns."""
    for line in hlo.splitlines():
        match = re.search(rf"= (.*?) {operation}(?:-start)?\(", line)
        for shape in re.findall(r"\w\[([\d,]*)\]", match[1]) if match else ():
            name = re.search(r'op_name="([^"]*)"', line)
            yield tuple(int(n) for n in shape.split(",") if n), name[1] if name else ""
