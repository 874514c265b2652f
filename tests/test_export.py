"""Exported programs are read by other versions of JAX."""

import jax
import numpy as np
import pytest
from jax import export

from jaxnets.export import for_older_readers
from tests.references import make_export

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 7])
def test_a_program_of_a_later_jax_runs(count: int) -> None:
    """jax 0.12 wrote the file; by default it writes what jax 0.10 refuses."""
    program = export.deserialize(bytearray(make_export.FILE.read_bytes()))
    logits = jax.jit(program.call)(IMAGES[:count])
    np.testing.assert_allclose(logits, make_export.expected(IMAGES[:count]), rtol=1e-5, atol=1e-6)


def test_a_program_is_written_for_the_first_stable_readers() -> None:
    exported = make_export.program()
    older = for_older_readers(exported)
    assert b"StableHLO_v1.0.0" in older.mlir_module_serialized
    assert b"StableHLO_v1.0.0" not in exported.mlir_module_serialized
    again = export.deserialize(older.serialize())
    np.testing.assert_allclose(again.call(IMAGES), make_export.expected(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_program_that_needs_a_later_version_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxnets.export._STABLEHLO_VERSION", "0.0.1")
    exported = make_export.program()
    assert for_older_readers(exported) is exported
