"""The vectors of the eigensolver: inner products, Gram-Schmidt, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.analysis.linalg.vectors import Form
from dlf_dynamics.errors import DataError


def test_inner_products_of_many_small_numbers_lose_nothing():
    # Of ten million squares, added one to the other in float32, 5,000 eps are lost.
    size = 10_000_003
    form = Form.flat(size, np.float32)
    numbers = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    exact, eps = np.sum(numbers.astype(float) ** 2), np.finfo(np.float32).eps
    one, rows = jax.jit(lambda v: (form.inner(v, v), form.inner(v[None], v)))(numbers)
    assert abs(float(one) / exact - 1) < 100 * eps
    assert abs(float(rows[0]) / exact - 1) < 10 * eps


def test_a_pytree_has_the_algebra_of_the_flat_vector():
    rng = np.random.default_rng(0)
    rows = {"a": rng.standard_normal((3, 2, 5)), "b": rng.standard_normal((3, 4))}
    form = Form.like({"a": jnp.zeros((2, 5)), "b": jnp.zeros(4)})
    flat = np.concatenate([rows["a"].reshape(3, -1), rows["b"]], axis=1)
    orthonormal, _ = np.linalg.qr(flat.T)
    basis = {"a": orthonormal.T[:, :10].reshape(3, 2, 5), "b": orthonormal.T[:, 10:]}
    vector = {"a": rng.standard_normal((2, 5)), "b": rng.standard_normal(4)}
    numbers = np.concatenate([vector["a"].ravel(), vector["b"]])
    np.testing.assert_allclose(form.inner(rows, rows), flat @ flat.T, rtol=1e-12)
    rest, overlaps = form.outside(vector, basis)
    expected = numbers - orthonormal @ (orthonormal.T @ numbers)
    found = np.concatenate([np.ravel(rest["a"]), rest["b"]])
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(overlaps, orthonormal.T @ numbers, rtol=1e-12)
    turned = form.rotated(jnp.eye(3)[::-1], jax.tree.map(jnp.asarray, basis))
    np.testing.assert_array_equal(turned["a"], basis["a"][::-1])


def test_a_vector_in_the_span_of_the_rows_leaves_nothing():
    form = Form.flat(50, float)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 4)))[0].T
    assert not np.any(form.unit_outside(basis[1] + 2 * basis[3], basis))
    outside = form.unit_outside(np.ones(50), basis)
    assert np.linalg.norm(outside) == pytest.approx(1, rel=1e-14)
    np.testing.assert_allclose(basis @ outside, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(2)},
            "leaves have the types float32, float64; expected one floating-point type",
        ),
        ([jnp.zeros(2, int)], "leaves have the types int64; expected one floating-point type"),
        ([], "leaves have the types of nothing; expected one floating-point type"),
    ],
)
def test_leaves_of_other_types_are_refused(tree, message):
    with pytest.raises(DataError, match=message):
        Form.like(tree)


def test_leaves_on_two_meshes_are_refused():
    meshes = (AbstractMesh((2,), ("a",)), AbstractMesh((2,), ("b",)))
    leaves = [
        jax.ShapeDtypeStruct((4,), float, sharding=NamedSharding(mesh, PartitionSpec()))
        for mesh in meshes
    ]
    with pytest.raises(DataError, match="leaves lie on 2 meshes of devices; expected one mesh"):
        Form.like(leaves)


def test_a_vector_may_be_one_array_of_two_axes():
    weights = jnp.arange(1.0, 13.0).reshape(3, 4)
    operator = Partial(lambda w, v: w * v, weights)
    settings = {"tol": 1e-8, "max_matvecs": 40, "key": jax.random.key(0)}
    found = top_eigenpairs(operator, 12, 1, like=weights, **settings)
    assert found.eigenvalues == pytest.approx([12], rel=1e-12)
    assert found.eigenvectors.shape == (1, 3, 4)
    assert abs(found.eigenvectors[0, 2, 3]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("num_params", "product", "message"),
    [
        (5, lambda tree: tree, "num_params is 5; expected 6, the numbers in `like`"),
        (6, lambda tree: tree["a"], "the product has shape .* expected the vector's the form"),
    ],
)
def test_a_form_that_is_not_that_of_the_operator_is_refused(num_params, product, message):
    like = {"a": jnp.zeros(2), "b": jnp.zeros((2, 2))}
    settings = {"tol": 1e-6, "max_matvecs": 20, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(Partial(product), num_params, 1, like=like, **settings)
