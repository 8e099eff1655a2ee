"""Certified eigenvalues against dense matrices of chosen spectra, for both methods."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics.analysis.linalg import eigensolver
from dlf_dynamics.analysis.linalg.certificate import certify
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.eigensolver import Plan, evidence_of, make_ends, top_eigenpairs
from dlf_dynamics.analysis.linalg.ritz import Ends
from dlf_dynamics.analysis.linalg.solution import solve as solve_any
from dlf_dynamics.analysis.linalg.vectors import Form

METHODS = ("lanczos", "thick restart")
WHICH = ("largest", "smallest", "both")
PRECISIONS = [(np.float64, 1e-6), (np.float32, 1e-3)]


def product(matrix, vector):
    return matrix @ vector


def reflected_product(operands, vector):
    """Product with a diagonal matrix in the basis of three reflections, without a matrix."""
    diagonal, mirrors = operands
    for mirror in mirrors:
        vector = vector - 2 * (mirror @ vector) * mirror
    vector = diagonal * vector
    for mirror in mirrors[::-1]:
        vector = vector - 2 * (mirror @ vector) * mirror
    return vector


def make_reflected(eigenvalues, seed):
    mirrors = np.random.default_rng(seed).standard_normal((3, len(eigenvalues)))
    return np.asarray(eigenvalues), mirrors / np.linalg.norm(mirrors, axis=1, keepdims=True)


def make_matrix(eigenvalues, seed, dtype=np.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    normal = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    vectors, _ = np.linalg.qr(normal)
    matrix = (vectors * eigenvalues @ vectors.T).astype(dtype)
    return (matrix + matrix.T) / 2


def regression_hessian(n, seed):
    """Squared loss of a linear model with 3 live inputs: rank 3, and rows of exact zeros."""
    inputs = np.zeros((20, n))
    inputs[:, :3] = np.random.default_rng(seed).standard_normal((20, 3))
    return inputs.T @ inputs / 20


def spectrum(name, n, seed=0):
    """A spectrum of n eigenvalues; the clusters are those of k = 3."""
    rest = np.random.default_rng([n, seed]).uniform(0, 0.3, max(n - 3, 0))
    return {
        "geometric": 0.7 ** np.arange(n),
        "linear": np.linspace(1, 0.1, n),
        "alternating": np.where(np.arange(n) % 2, 0.9, -1) * np.linspace(1, 0.01, n),
        "negative": -np.linspace(0.1, 3, n),
        "cluster below": np.concatenate([[1, 0.5, 0.2], 0.1 + 1e-6 * rest])[:n],
        "cluster of 1": np.concatenate([[1, 0.6, 0.5], 0.5 * rest])[:n],
        "cluster of 2": np.concatenate([[1, 0.998, 0.5], rest])[:n],
        "cluster of 3": np.concatenate([[1, 0.997, 0.993], rest])[:n],
        "tight pair": np.concatenate([[1, 1 - 1e-3, 0.5], rest])[:n],
        "tight triple": np.concatenate([[1, 1 - 1e-5, 1 - 2e-5], rest])[:n],
        "double": np.concatenate([[1, 1, 0.5], rest])[:n],
        "lower double": np.concatenate([[1, 0.5, 0.5], rest])[:n],
        "triple": np.concatenate([[1, 1, 1], rest])[:n],
        "fivefold": np.concatenate([[1, 1, 1, 1, 1], rest])[:n],
        "triple on a line": np.concatenate([[1, 1, 1], np.linspace(0.95, 0, max(n - 3, 0))])[:n],
        "double on both ends": np.concatenate([[1, 1, -1, -1], rest])[:n],
        "indefinite": np.concatenate([[1, 0.8, 0.5], -20 * rest])[:n],
        "rank 3": np.concatenate([[3, 2, 1], 0 * rest])[:n],
        "rank 2": np.concatenate([[3, -2, 0], 0 * rest])[:n],
        "two values": np.where(np.arange(n) < n / 3, 1.0, -0.5),
        "far apart": np.concatenate([[1e6, 1, 1e-3], 1e-3 * rest])[:n],
        "identity": np.ones(n),
        "zero": np.zeros(n),
    }[name]


SPECTRA = (
    "geometric",
    "linear",
    "alternating",
    "negative",
    "cluster below",
    "cluster of 1",
    "cluster of 2",
    "cluster of 3",
    "tight pair",
    "tight triple",
    "double",
    "lower double",
    "triple",
    "fivefold",
    "triple on a line",
    "double on both ends",
    "indefinite",
    "rank 3",
    "rank 2",
    "two values",
    "far apart",
    "identity",
    "zero",
)


def solve_operator(matvec, n, k, *, method="lanczos", seed=0, dtype=np.float64, **settings):
    """`top_eigenpairs` by one of the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigensolver, "PASS_SIZE", 10**6 if method == "lanczos" else 0)
        found = top_eigenpairs(matvec, n, k, key=jax.random.key(seed), dtype=dtype, **settings)
    # What a pass leaves open goes on with restarts.
    assert found.method == method or (method == "lanczos" and found.num_matvecs > 20)
    return found


def solve(matrix, k, **settings):
    matvec = Partial(product, jnp.asarray(matrix))
    return solve_operator(matvec, len(matrix), k, dtype=matrix.dtype, **settings)


def pick(descending, k, which):
    ends = make_ends(k, len(descending), which)
    return np.concatenate([descending[: ends.top], descending[len(descending) - ends.bottom :]])


def contains(intervals, exact, norm=1.0):
    """Whether each interval contains its eigenvalue, which LAPACK knows to some eps itself."""
    slack = 10 * np.finfo(float).eps * norm
    return (intervals[:, 0] - slack <= exact) & (exact <= intervals[:, 1] + slack)


def wrong(found, exact, norm=1.0):
    """Values marked converged whose interval does not contain the eigenvalue of their place."""
    return found.converged & ~contains(found.intervals, exact, norm)


def check(matrix, found, k, which, *, tol, max_matvecs):
    """All that the solver promises, recomputed with LAPACK in float64."""
    precision = float(np.finfo(matrix.dtype).eps)
    matrix = matrix.astype(np.float64)
    descending = np.linalg.eigvalsh(matrix)[::-1]
    exact, norm = pick(descending, k, which), np.max(np.abs(descending))
    values, vectors = found.eigenvalues.astype(float), found.eigenvectors.astype(float)
    # Rounding of a product with the matrix, entry by entry at most n eps, in practice like √n.
    rounding = 4 * precision * np.sqrt(len(matrix)) * norm
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)

    assert not np.any(wrong(found, exact, norm))
    np.testing.assert_allclose(found.residuals, residuals, atol=rounding, rtol=0)
    assert np.all(residuals[found.converged] <= tol * norm + rounding)
    difference = np.abs(vectors @ vectors.T - np.eye(len(values)))
    eps = float(np.finfo(found.eigenvectors.dtype).eps)
    assert np.max(difference) <= 20 * eps * np.sqrt(len(matrix))
    assert np.max(difference) == pytest.approx(found.orthogonality, abs=50 * eps)
    assert np.all(np.diff(values) <= 0)
    assert found.num_matvecs <= max_matvecs
    assert found.converged.tolist() == [status == "converged" for status in found.status]

    # Whether converged or not, each interval contains an eigenvalue: none is a phantom.
    slack = 10 * np.finfo(float).eps * norm
    lower, upper = found.intervals.T
    inside = (lower[:, None] - slack <= descending) & (descending <= upper[:, None] + slack)
    assert np.all(np.any(inside, axis=1))
    assert found.lower_bound - slack <= descending[-1] <= descending[0] <= found.upper_bound + slack
    ends = make_ends(k, len(matrix), which)
    if ends.total < len(matrix):
        assert descending[ends.top] <= found.rank_bounds[0] + slack
        assert descending[len(matrix) - 1 - ends.bottom] >= found.rank_bounds[1] - slack
    return exact


@pytest.mark.parametrize(
    ("dtype", "tol"), [PRECISIONS[0], pytest.param(*PRECISIONS[1], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seeds", [(0,), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_what_is_marked_converged_is_right_for_every_spectrum(seeds, method, which, dtype, tol):
    budget = {"tol": tol, "max_matvecs": 80}
    solved = set()
    for seed in seeds:
        matrices = {name: make_matrix(spectrum(name, 50, seed), seed, dtype) for name in SPECTRA}
        matrices["regression"] = regression_hessian(50, seed).astype(dtype)
        for name, matrix in matrices.items():
            found = solve(matrix, 3, method=method, which=which, seed=seed, **budget)
            check(matrix, found, 3, which, **budget)
            if np.all(found.converged):
                solved.add(name)
    # The easy ones are solved indeed.
    assert solved >= {"rank 3", "two values", "identity", "zero", "regression"}


@pytest.mark.parametrize("method", METHODS)
def test_with_more_products_clusters_and_copies_are_all_found(method):
    budget = {"tol": 1e-5, "max_matvecs": 150}
    for seed in range(2):
        for name in ("cluster of 2", "tight pair", "double", "lower double", "triple", "fivefold"):
            matrix = make_matrix(spectrum(name, 100, seed), seed)
            found = solve(matrix, 3, method=method, which="largest", seed=seed, **budget)
            check(matrix, found, 3, "largest", **budget)
            assert np.all(found.converged)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_eigenvalues_come_where_k_is_the_order(method, n):
    budget = {"tol": 1e-10, "max_matvecs": 40}
    for values in (np.linspace(-1, 2, n), np.ones(n), np.zeros(n)):
        matrix = make_matrix(values, n)
        found = solve(matrix, n, method=method, which="both", **budget)
        check(matrix, found, n, "both", **budget)
        assert np.all(found.converged)
        assert len(found.eigenvalues) == n


@pytest.mark.parametrize(
    ("method", "n"),
    [
        ("lanczos", 2000),
        ("thick restart", 2000),
        pytest.param("thick restart", 100_000, marks=pytest.mark.slow),
    ],
)
def test_large_operators_have_their_eigenvalues_and_those_of_scipy(method, n):
    for seed, name in enumerate(("geometric", "double", "indefinite", "rank 3")):
        operands = make_reflected(spectrum(name, n), seed)
        matvec = Partial(reflected_product, jax.tree.map(jnp.asarray, operands))
        found = solve_operator(matvec, n, 2, method=method, seed=seed, tol=1e-6, max_matvecs=100)
        exact = np.sort(operands[0])[::-1][:2]
        assert not np.any(wrong(found, exact))
        if n == 2000 and name == "geometric":
            times = lambda vector, operands=operands: reflected_product(operands, vector.ravel())  # noqa: E731
            start = np.random.default_rng(seed).standard_normal(n)
            linear = LinearOperator((n, n), times, dtype=float)
            scipys = np.sort(eigsh(linear, 2, which="LA", return_eigenvectors=False, v0=start))
            np.testing.assert_allclose(found.eigenvalues, scipys[::-1], atol=1e-10)
        if name in ("geometric", "rank 3"):
            assert np.all(found.converged)
            np.testing.assert_allclose(found.eigenvalues, exact, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_depend_on_the_scale(method):
    for dtype, tol in PRECISIONS:
        matrix = make_matrix(spectrum("cluster of 2", 50), 0, dtype)
        first = solve(matrix, 3, method=method, tol=tol, max_matvecs=40)
        for scale in (1e-8, 1e8):
            scaled = (scale * matrix).astype(dtype)
            found = solve(scaled, 3, method=method, tol=tol, max_matvecs=40)
            check(scaled, found, 3, "largest", tol=tol, max_matvecs=40)
            if dtype == np.float64:
                assert found.num_matvecs == first.num_matvecs
                assert np.array_equal(found.converged, first.converged)
            allowed = 1e-10 if dtype == np.float64 else 1e-3
            np.testing.assert_allclose(found.eigenvalues / scale, first.eigenvalues, atol=allowed)


def crossing(t, coupling, seed, n=50):
    """Eigenvalues near 1 and 0.5 + t, which cross at t = 0.5 where nothing couples them."""
    values = np.concatenate([[1, 0.5 + t], np.random.default_rng(seed).uniform(0, 0.3, n - 2)])
    matrix = np.diag(values)
    matrix[0, 1] = matrix[1, 0] = coupling
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return vectors @ matrix @ vectors.T


@pytest.mark.parametrize("k", [1, 2])
def test_warm_starts_follow_a_crossing(k):
    budget = {"tol": 1e-4, "max_matvecs": 60}
    for seed in range(2):
        for coupling in (0, 1e-6, 1e-3):
            start, products = None, []
            for t in np.linspace(0, 1, 21):
                matrix = crossing(t, coupling, seed)
                matrix = (matrix + matrix.T) / 2
                found = solve(matrix, k, method="thick restart", initial_vectors=start, **budget)
                check(matrix, found, k, "largest", **budget)
                assert np.all(found.converged)
                start, products = found.eigenvectors, [*products, found.num_matvecs]


@pytest.mark.parametrize(
    "sizes",  # those of the first are compiled for the first test, too
    [[(50, 3)], pytest.param([(5, 2), (50, 3)], marks=pytest.mark.slow)],
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_marked_converged_is_wrong_for_any_spectrum(sizes, data):
    values = st.floats(-1, 1).map(lambda value: round(value, 3))
    n, k = data.draw(st.sampled_from(sizes))
    few = data.draw(st.lists(values, min_size=1, max_size=6))
    spread = data.draw(st.sampled_from([0, 1e-6, 0.1]))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    dtype, tol = data.draw(st.sampled_from(PRECISIONS))
    which = data.draw(st.sampled_from(WHICH))
    method = data.draw(st.sampled_from(METHODS))
    matrix = make_matrix(rng.choice(few, n) + spread * rng.uniform(-1, 1, n), seed, dtype)
    budget = {"tol": tol, "max_matvecs": 40}
    found = solve(matrix, k, method=method, which=which, seed=seed, **budget)
    check(matrix, found, k, which, **budget)


@pytest.mark.parametrize("method", METHODS)
def test_too_few_products_leave_values_not_converged_and_say_so(method):
    matrix = make_matrix(np.linspace(1, 0, 50), 0)
    for seed in range(5):
        found = solve(matrix, 3, method=method, seed=seed, tol=1e-6, max_matvecs=10)
        check(matrix, found, 3, "largest", tol=1e-6, max_matvecs=10)
        assert found.status == ("budget",) * 3
        assert found.num_matvecs <= 10
        assert found.message.startswith(f"0 of 3 converged after {found.num_matvecs} products of ")
        assert found.message.endswith("; allow more products (max_matvecs) or a larger tol")


def test_a_tolerance_below_the_precision_is_not_claimed_to_be_met():
    matrix = make_matrix(spectrum("linear", 50), 0, np.float32)
    for method in METHODS:
        found = solve(matrix, 3, method=method, tol=1e-12, max_matvecs=14)
        assert not np.any(found.converged)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "max_matvecs"), [("linear", 14), ("double", 60)])
def test_num_matvecs_counts_the_products_that_are_made(method, name, max_matvecs):
    matrix, made = make_matrix(spectrum(name, 50), 0), []

    def times(vector):
        made.append(1)
        return matrix @ vector

    def matvec(vector):
        return jax.pure_callback(times, jax.ShapeDtypeStruct((50,), np.float64), vector)

    found = solve_operator(matvec, 50, 3, method=method, tol=1e-3, max_matvecs=max_matvecs)
    assert found.num_matvecs == len(made) <= max_matvecs


@pytest.mark.parametrize("method", METHODS)
def test_a_second_matrix_of_the_same_shape_is_not_compiled_again(method):
    traces = []

    def counted(matrix, vector):
        traces.append(1)
        return matrix @ vector

    counts = []
    for seed in range(3):
        matvec = Partial(counted, jnp.asarray(make_matrix(spectrum("geometric", 50), seed)))
        solve_operator(matvec, 50, 3, method=method, tol=1e-3, max_matvecs=14)
        counts.append(len(traces))
    # The shape of the product is looked at each time.
    assert counts[2] - counts[1] <= 1


def test_the_pass_maps_over_matrices_under_jit():
    matrices = np.stack([make_matrix(spectrum("geometric", 30), seed) for seed in range(3)])
    goal = Goal(Ends(2, 0), 1e-6)
    plan = Plan.of(30, goal, 60, np.dtype(float))

    @jax.jit
    def mapped(stack):
        key = jax.random.key(0)

        def one(matrix):
            return plan.run(lambda: partial(product, matrix), key, goal.tolerances)

        return jax.lax.map(one, stack)

    evidence = evidence_of(jax.device_get(mapped(jnp.asarray(matrices))), plan)
    certificate = certify(evidence, goal)
    assert certificate.converged.shape == (3, 2)
    assert np.all(certificate.converged)
    np.testing.assert_allclose(evidence.pairs.values, [[1, 0.7]] * 3, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_an_operator_that_is_not_finite_gives_nothing_converged(method):
    one_entry = np.eye(50)
    one_entry[3, 4] = one_entry[4, 3] = np.nan
    for matrix in (np.full((50, 50), np.nan), np.full((50, 50), np.inf), one_entry):
        found = solve(matrix, 3, method=method, tol=1e-6, max_matvecs=14)
        assert set(found.status) == {"not finite"}
        assert "the operator gives values that are not finite" in found.message


def cancelling_product(operands, vector):
    """Product with a small matrix, as the difference of two large numbers."""
    matrix, large = operands
    return (matrix @ vector + large * vector) - large * vector


@pytest.mark.parametrize("method", METHODS)
def test_of_products_that_are_only_rounding_a_few_are_made_and_the_intervals_hold(method):
    exact = 1e-17 * spectrum("geometric", 300)
    operator = Partial(lambda a: a, Partial(cancelling_product, (make_matrix(exact, 0), 1.0)))
    goal, key = Goal(Ends(3, 0), 1e-9), jax.random.key(0)
    if method == "lanczos":
        plan = Plan.of(300, goal, 192, np.dtype(float))
        evidence = evidence_of(jax.device_get(plan.run(operator, key, goal.tolerances)), plan)
    else:
        evidence = solve_any(operator, Form.flat(300, float), goal, max_matvecs=192, key=key)
    assert int(evidence.num_matvecs) < 20
    found = certify(evidence, goal)
    assert not np.any(found.converged)
    assert np.all((found.intervals[:, 0] <= exact[-1]) & (exact[0] <= found.intervals[:, 1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_products_that_are_not_finite_end_it_at_once(method, value):
    operator = Partial(jnp.multiply, value)
    found = solve_operator(operator, 300, 3, method=method, tol=1e-6, max_matvecs=150)
    assert set(found.status) == {"not finite"}
    assert found.num_matvecs < 20


@pytest.mark.parametrize("method", METHODS)
def test_the_interval_allows_for_squares_that_leave_the_range(method):
    found = solve_operator(
        Partial(jnp.multiply, 1e-170), 50, 1, method=method, tol=1e-6, max_matvecs=20
    )
    low, high = found.intervals[0]
    assert low <= 1e-170 <= high < 1e-150


def random_product(vector):
    rng = np.random.default_rng()

    def times(vector):
        return vector * rng.uniform(0.5, 1.5, vector.shape)

    return jax.pure_callback(times, jax.ShapeDtypeStruct((50,), np.float64), vector)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("matvec", "message"),
    [
        (lambda v: jnp.triu(jnp.ones((50, 50))) @ v, "products are not symmetric"),
        (lambda v: v + v**3, "products are not linear"),
        (lambda v: v + 1, "products are not linear"),
        (random_product, "products are not deterministic"),
        (lambda v: v[:-1], r"the product has shape \(49,\) and type float64; expected .* \(50,\)"),
        (lambda v: v.astype(jnp.float32), r"shape \(50,\) and type float32; expected .* float64"),
    ],
)
def test_what_is_not_a_symmetric_matrix_is_refused(method, matvec, message):
    with pytest.raises(ValueError, match=message):
        solve_operator(matvec, 50, 1, method=method, tol=1e-6, max_matvecs=7)


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_1_to_n_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 5, the order of the operator"):
        solve(np.eye(5), k, tol=1e-6, max_matvecs=40)


def test_an_unknown_end_is_refused():
    with pytest.raises(ValueError, match="which is 'LM'; expected one of largest, smallest, both"):
        solve(np.eye(5), 1, which="LM", tol=1e-6, max_matvecs=40)


def test_too_few_products_for_k_are_refused():
    with pytest.raises(ValueError, match="max_matvecs is 7; expected at least 8 for k = 3"):
        solve(np.eye(5), 3, tol=1e-6, max_matvecs=7)
