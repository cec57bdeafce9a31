"""Video diffusion in JAX: train, sample and evaluate factorised space-time networks on any mesh."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # On first use: importing the package stays quick, and sets up no device.
    if name == "load":
        from vdm_jax.generation.published import load

        return load
    raise AttributeError(f"module 'vdm_jax' has no attribute {name!r}")
