"""What several files here share."""

import pytest

from tests.pretrained import tiny_open_sora


@pytest.fixture
def temporal(monkeypatch):
    """The tensors of Open-Sora's temporal autoencoder with few channels."""
    return tiny_open_sora.temporal_tensors(monkeypatch)
