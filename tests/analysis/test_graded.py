"""Singular values of products of matrices whose factors were chosen."""

from itertools import pairwise

import numpy as np
import pytest

from dlf_dynamics.analysis.linalg.graded import top_singular

SIZE = 12


class Product:
    """Links U_i diag(s) U_(i-1)ᵀ with orthogonal U: the singular values are the powers of s."""

    size = SIZE

    def __init__(self, sizes, links):
        rng = np.random.default_rng(1)
        frames = [np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(links + 1)]
        self.first = frames[0]
        self.links = [after @ np.diag(sizes) @ before.T for before, after in pairwise(frames)]

    def __len__(self):
        return len(self.links)

    def through(self, link, vectors):
        return vectors @ self.links[link].T

    def back(self, link, vectors):
        return vectors @ self.links[link]


@pytest.mark.parametrize("links", [1, 3, 30, 400])
def test_values_however_far_apart_and_beyond_the_largest_number(links):
    third = 10.0 if links == 400 else 0.5
    sizes = np.array([40.0, 20.0, third, 0.3, *np.full(SIZE - 4, 0.1)])
    chain = Product(sizes, links)
    found = top_singular(chain, 3)
    np.testing.assert_allclose(found.logarithms, links * np.log(sizes[:3]), rtol=1e-9, atol=1e-12)
    assert found.converged.all()
    overlaps = np.abs(np.sum(found.right * chain.first[:, :3].T, axis=1))
    np.testing.assert_allclose(overlaps, 1, atol=1e-9)
    if links == 400:  # 10^640
        assert found.logarithms[0] > np.log(np.finfo(float).max)


def test_values_that_are_too_far_apart_for_their_ratio_have_not_converged():
    chain = Product(np.array([40.0, 5.0, 0.5, *np.full(SIZE - 3, 0.1)]), 400)
    found = top_singular(chain, 3)
    assert found.converged.tolist() == [True, False, False]
    np.testing.assert_allclose(found.logarithms[0], 400 * np.log(40))


def test_a_dense_matrix_with_values_close_together():
    chain = Product(np.linspace(2, 1, SIZE), 1)
    found = top_singular(chain, 3, max_products=60)
    np.testing.assert_allclose(np.exp(found.logarithms), np.linspace(2, 1, SIZE)[:3], rtol=1e-9)
    assert found.converged.all()
    assert found.products <= 66


def test_it_says_what_has_not_converged():
    chain = Product(np.linspace(2, 1.9, SIZE), 1)
    found = top_singular(chain, 3, max_products=8)
    assert not found.converged.any()
    images = chain.through(0, found.right)
    values = np.linalg.norm(images, axis=1)
    back = chain.back(0, images / values[:, None]) / values[:, None]
    own = np.linalg.norm(back - found.right, axis=1)
    # Those of larger values are in it, and what lies along them is not.
    np.testing.assert_allclose(found.residuals[0], own[0], rtol=1e-9)
    assert np.all(found.residuals > own / 2)


def test_products_that_are_not_finite_are_told():
    chain = Product(np.ones(SIZE), 3)
    chain.links[1] = np.full((SIZE, SIZE), np.inf)
    with np.errstate(invalid="ignore"):
        found = top_singular(chain, 2)
    assert np.isnan(found.logarithms).all()
    assert not found.converged.any()


@pytest.mark.parametrize("sizes", [np.zeros(SIZE), np.eye(SIZE)[0]])
def test_a_matrix_without_full_rank(sizes):
    found = top_singular(Product(sizes, 2), 2)
    assert found.logarithms[1] < -30
    assert not found.converged[1]
    if sizes[0]:
        assert found.converged[0]
        np.testing.assert_allclose(found.logarithms[0], 0, atol=1e-12)


def test_all_values_of_a_small_matrix():
    chain = Product(np.linspace(3, 1, SIZE), 2)
    found = top_singular(chain, SIZE, max_products=100)
    np.testing.assert_allclose(np.exp(found.logarithms), np.linspace(3, 1, SIZE) ** 2, rtol=1e-9)
