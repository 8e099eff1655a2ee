"""Multipliers of matrices that are known."""

import numpy as np
import pytest

from dlf_dynamics.analysis.stability.floquet import leading_multipliers


class Matrix:
    def __init__(self, matrix):
        self.matrix, self.size = matrix, len(matrix)

    def forward(self, vectors):
        return vectors @ self.matrix.T

    def backward(self, vectors):
        return vectors @ self.matrix


def similar(values, seed=0, skew=0.05):
    """A matrix with these eigenvalues, conjugate ones next to each other, that is not normal."""
    blocks, place = np.zeros((len(values), len(values))), 0
    while place < len(values):
        value = complex(values[place])
        if value.imag:
            block = [[value.real, value.imag], [-value.imag, value.real]]
            blocks[place : place + 2, place : place + 2] = block
            place += 2
        else:
            blocks[place, place] = value.real
            place += 1
    basis = np.eye(len(values)) + skew * np.random.default_rng(seed).normal(size=blocks.shape)
    return Matrix(basis @ blocks @ np.linalg.inv(basis))


@pytest.mark.parametrize("size", [10, 300])  # all of them, and by Arnoldi's method
@pytest.mark.parametrize(
    ("leading", "stability", "crossing"),
    [
        ([-1.2, 0.5], "unstable", "flip"),
        ([1.2, 0.5], "unstable", "+1"),
        ([0.9 + 0.9j, 0.9 - 0.9j, 0.5], "unstable", "Neimark-Sacker"),
        ([-0.9, 0.5], "stable", ""),
        ([-1.0, 0.5], "unknown", ""),
        ([1.0, 1.0, -0.9, 0.5], "none found", ""),
        ([1.0, 1.0, -1.1, 0.5], "unstable", "flip"),
    ],
)
def test_kinds_of_crossings(size, leading, stability, crossing):
    rest = np.linspace(0.3, 0.0, size - len(leading))
    matrix = similar([*leading, *rest], skew=0.3 / np.sqrt(size))
    found = leading_multipliers(matrix, 2)
    assert found.crossing == crossing
    if size == 300 and stability == "stable":
        stability = "none found"  # there may be others
    assert found.stability == stability
    assert found.neutral == leading.count(1.0)
    expected = [value for value in leading if value != 1.0][:2]
    order = np.argsort(-np.abs(expected), kind="stable")
    got = np.sort_complex(found.values)
    np.testing.assert_allclose(got, np.sort_complex(np.array(expected)[order]), atol=1e-9)
    assert np.all(found.residuals < 1e-9)


def test_a_residual_of_a_matrix_that_is_far_from_normal_is_no_error():
    """A Jordan block, perturbed by 1e-12: its eigenvalues have moved by 1e-3."""
    block = 0.99 * np.eye(4) + np.eye(4, k=1)
    block[3, 0] = 1e-12
    found = leading_multipliers(Matrix(block), 4)
    np.testing.assert_allclose(np.max(np.abs(found.values)), 0.991, atol=1e-5)
    assert np.max(found.residuals) < 1e-14
    assert np.max(found.errors) > 1e6 * np.max(found.residuals)
