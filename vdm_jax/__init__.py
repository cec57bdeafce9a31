"""Video diffusion in JAX: train, sample and evaluate space-time networks on any mesh."""

__version__ = "0.2.0"

_PUBLIC = {"load": "build", "Pipeline": "generation.pipeline"}


def __getattr__(name: str):
    # On first use: importing the package stays quick, and sets up no device.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(f"vdm_jax.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'vdm_jax' has no attribute {name!r}")
