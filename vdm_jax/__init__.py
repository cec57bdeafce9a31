"""Video diffusion in JAX: train, sample and evaluate factorised space-time networks on any mesh."""

__version__ = "0.1.0"
