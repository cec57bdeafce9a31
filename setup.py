"""Package metadata; tested versions are pinned in constraints-*.txt."""

from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1]
    for line in Path("vdm_jax/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
parity = ["torch", "diffusers>=0.42", "transformers>=5", "accelerate", "peft", "sentencepiece>=0.2", "ftfy"]

setup(
    name="vdm_jax",
    version=version,
    description="Video diffusion in JAX: train, sample and evaluate factorised space-time networks on any mesh",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["vdm_jax", "vdm_jax.*"]),
    package_data={"vdm_jax.pages": ["web/*"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.12",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.9",
        "ml_collections>=1.1",
        "clu>=0.0.12",
        "einops>=0.8",
        "jaxtyping>=0.3",
        "jinja2>=3.1",  # the pages
        "numpy>=2",
        "scikit-learn>=1.5",  # the digits
        "threadpoolctl>=3.5",
        "av>=15.1",
        "pillow>=11",
        "tqdm>=4.66",
        "safetensors>=0.5",
        "pyarrow>=18",
        "tokenizers>=0.21",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "tensorboard": ["tensorflow-cpu>=2.20", "tensorboard>=2.20"],
        "evaluation": ["opencv-python-headless>=4.10"],  # optical flow
        "parity": parity,
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "beartype>=0.20",
            "ruff>=0.12",
            "selenium>=4.30",
            "opencv-python-headless>=4.10",
        ],
    },
)
