"""A fixture that the tests of whole runs share."""

from typing import Any

import pytest

from tests.training.tiny import Tiny


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run trains the tiny network, whatever its --arch, and leaves no report."""

    def create(name: str, **options: Any) -> Tiny:
        return Tiny(**options)

    monkeypatch.setattr("jaxnets.weights.runs.create_model", create)
    monkeypatch.setattr("jaxnets.training.loop.write_report", lambda workdir: None)
