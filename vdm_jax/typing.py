"""Defines the array annotations of the package; shapes are jaxtyping strings, checked in the tests.

Axis letters: `B` batch, `T` frames, `H` `W` rows and columns, `P` pixels of a frame (H·W), `C` channels, `N` heads,
`D` head size, `L` text tokens, `S` source positions of an attention.
"""

import jax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt, UInt8

Scalar = Float[Array, ""]
Params = PyTree[jax.Array]

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Params", "PyTree", "Scalar", "UInt", "UInt8"]
