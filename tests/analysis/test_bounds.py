"""Upper bounds by random chains: they hold, but for the probability that they tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlf_dynamics.analysis.linalg import krylov
from dlf_dynamics.analysis.linalg.bounds import Recurrence, share_limit, upper_bound
from dlf_dynamics.analysis.linalg.certificate import certify
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.eigensolver import Plan, evidence_of, top_eigenpairs
from dlf_dynamics.analysis.linalg.krylov import search
from dlf_dynamics.analysis.linalg.ritz import Ends
from dlf_dynamics.analysis.linalg.solution import solve
from dlf_dynamics.analysis.linalg.vectors import Form

DELTA = 1e-6


def scaled(diagonal, vector):
    return diagonal * vector


def textbook_lanczos(diagonal, start, steps):
    """Coefficients by Lanczos' recurrence with full orthogonalisation, in NumPy."""
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    for _ in range(steps):
        rest = diagonal * basis[-1]
        alphas.append(rest @ basis[-1])
        for _ in range(2):
            rest = rest - np.array(basis).T @ (np.array(basis) @ rest)
        betas.append(np.linalg.norm(rest))
        basis.append(rest / betas[-1])
    return Recurrence(np.array(alphas), np.array(betas), np.arange(steps) == 0)


def planted(n, share, seed):
    """A start vector with a given share of the first direction."""
    rest = np.random.default_rng(seed).standard_normal(n - 1)
    return np.concatenate([[share], np.sqrt(1 - share**2) * rest / np.linalg.norm(rest)])


def flat(n, seed=0):
    """One eigenvalue of 1.2 above a flat spectrum."""
    return np.concatenate([[1.2], np.random.default_rng(seed).uniform(-1, 1, n - 1)])


def test_the_polynomial_is_that_of_the_chain():
    diagonal = flat(40)
    chain = textbook_lanczos(diagonal, planted(40, 0.1, 0), 12)
    for t in (1.3, 2.0, 5.0):
        matrix = (
            np.diag(chain.alphas) + np.diag(chain.betas[:-1], 1) + np.diag(chain.betas[:-1], -1)
        )
        sizes = range(1, 13)
        exact = [
            np.linalg.slogdet(t * np.eye(m) - matrix[:m, :m])[1] - np.sum(np.log(chain.betas[:m]))
            for m in sizes
        ]
        found = chain.certainty(np.array(t), 40)
        assert found == pytest.approx(max(max(exact) - share_limit(40), 0), rel=1e-10)


@pytest.mark.parametrize("steps", [8, 24, 46])
def test_a_share_just_above_the_limit_is_seen_and_one_below_it_may_not_be(steps):
    """The bound is as sharp as it says: of d, and not of some multiple of it."""
    n = 1000
    d = DELTA / np.sqrt(2 * n / np.pi)
    missed = 0
    for seed in range(10):
        diagonal = flat(n, seed)
        seen = textbook_lanczos(diagonal, planted(n, 1.01 * d, seed), steps)
        assert upper_bound(seen, n, DELTA) >= 1.2
        unseen = textbook_lanczos(diagonal, planted(n, 1e-3 * d, seed), steps)
        missed += upper_bound(unseen, n, DELTA) < 1.2
    # Before that, what is not seen is not excluded either.
    assert (missed > 0) == (steps == 46)


def test_without_the_dimension_in_it_the_bound_would_fail():
    """A negative control: a share that is usual for δ in 1,000 dimensions, not in one."""
    n, delta = 1000, 0.5
    failures = 0
    for seed in range(200):
        start = np.random.default_rng(seed).standard_normal(n)
        chain = textbook_lanczos(flat(n, seed), start, 14)
        assert upper_bound(chain, n, 1e-3) >= 1.2
        failures += upper_bound(chain, 1, delta) < 1.2
    assert failures > 0.5 * 200 * delta


def test_it_fails_about_as_often_as_it_says():
    n, delta, failures = 400, 0.3, 0
    for seed in range(300):
        start = np.random.default_rng(seed).standard_normal(n)
        chain = textbook_lanczos(flat(n, seed), start, 10)
        failures += upper_bound(chain, n, delta) < 1.2
    assert failures <= 300 * delta + 3 * np.sqrt(300 * delta)


def test_the_polynomial_goes_on_through_restarts(monkeypatch):
    """A search with restarts bounds as the textbook chain with the same products, or less."""
    monkeypatch.setattr(krylov, "_SMALL", 0)
    n = 500
    for seed in range(3):
        diagonal = flat(n, seed)
        operator = Partial(lambda d: lambda v: d * v, jnp.asarray(diagonal))
        goal = Goal(Ends(1, 0), 1e-9, DELTA, 1e-4)
        form = Form.flat(n, float)
        space = search(operator, form, goal, max_matvecs=150, key=jax.random.key(seed))
        assert space.recurrence.restarts
        bound = upper_bound(space.recurrence, n, DELTA)
        assert 1.2 - 1e-12 <= bound <= 1.2 + 1e-3
        # What φ(A) v is, made of the operator's own powers: the norm of each vector must be 1.
        t, shares = np.array(1.2), []
        draws = jax.random.normal(jax.random.fold_in(jax.random.key(seed), 0), (n,))
        start = np.asarray(draws) / np.linalg.norm(draws)
        shares.append(abs(start[0]))
        assert shares[0] * np.exp(growth_at(space.recurrence, t)) <= 1 + 1e-6


def growth_at(recurrence, t):
    """Log |p(t)| of the last vector, by the definition of a thick restart (in the text)."""
    log, ratio = 0.0, np.nan
    for step, (alpha, beta) in enumerate(zip(recurrence.alphas, recurrence.betas, strict=True)):
        values, couplings = recurrence.restarts.get(step, (np.zeros(0), np.zeros(0)))
        taken = np.sum(couplings**2 / (t - values))
        if step and step not in recurrence.restarts:
            taken = recurrence.betas[step - 1] / ratio
        ratio = (t - alpha - taken) / beta
        log += np.log(abs(ratio))
    return log


def family(n, seed, coupling=0.0):
    """Uncoupled eigenvalues 1 and 0.5 + t, over a bulk."""
    bulk = np.random.default_rng(seed).uniform(0, 0.3, n - 2)
    return lambda t: np.concatenate([[1, 0.5 + t], bulk])


def rising(n, seed):
    """A mode that rises out of the bulk and sinks again."""
    bulk = np.random.default_rng(seed).uniform(0, 0.3, n - 2)
    return lambda t: np.concatenate([[1, 0.2 + 1.2 * np.sin(np.pi * t)], bulk])


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("make", [family, rising])
def test_from_the_vectors_before_no_wrong_value_is_called_converged(make, tracked):
    n, wrong, converged = 200, 0, 0
    for seed in range(3):
        values, start = make(n, seed), None
        for t in np.linspace(0, 1, 15):
            diagonal = values(t)
            found = top_eigenpairs(
                Partial(scaled, jnp.asarray(diagonal)),
                n,
                1,
                tol=1e-4,
                max_matvecs=150,
                key=jax.random.key(1000 * seed + int(100 * t)),
                initial_vectors=start,
                tracked=tracked,
            )
            exact = np.max(diagonal)
            low, high = found.intervals[0]
            wrong += bool(found.converged[0]) and not low <= exact <= high
            converged += bool(found.converged[0])
            if tracked and start is not None:
                assert found.status == ("tracked",)
            start = found.eigenvectors
    assert wrong == 0
    assert converged == (3 if tracked else 45)


@pytest.mark.parametrize("n", [200, 1000, 3000])
def test_an_exact_invariant_subspace_hides_nothing(n):
    diagonal = np.concatenate([[2.0, 1.0, 0.9], np.random.default_rng(0).uniform(0, 0.3, n - 3)])
    start = np.eye(n)[[1, 2]]
    settings = {"tol": 1e-6, "max_matvecs": 200, "key": jax.random.key(0), "initial_vectors": start}
    matvec = Partial(scaled, jnp.asarray(diagonal))
    found = top_eigenpairs(matvec, n, 2, **settings)
    assert found.converged.all()
    np.testing.assert_allclose(found.eigenvalues, [2, 1], atol=1e-6)
    blind = top_eigenpairs(matvec, n, 2, tracked=True, **settings)
    assert blind.status == ("tracked", "tracked")


def test_products_in_float32_are_measured_against_those_in_float64():
    """Terms that cancel leave an error of float32 that no norm of the operator tells."""
    n, large = 600, 1e4
    values = np.concatenate([[1.0, 0.9], np.random.default_rng(0).uniform(-0.5, 0.5, n - 2)])
    narrow = jnp.asarray(values, jnp.float32), jnp.float32(large)

    def cancelling(operands, vector):
        diagonal, huge = operands
        return (diagonal * vector + huge * vector) - huge * vector

    matvec, goal = Partial(cancelling, narrow), Goal(Ends(2, 0), 1e-2)
    settings = {
        "max_matvecs": 200,
        "key": jax.random.key(0),
        "certificate_matvec": lambda vector: values * vector,
    }
    found = top_eigenpairs(matvec, n, 2, tol=1e-2, dtype=jnp.float32, **settings)
    exact = np.sort(values)[::-1]
    low, high = found.intervals.T
    assert np.all((low <= exact[:2]) & (exact[:2] <= high))
    assert exact[0] <= found.upper_bound
    assert exact[2] <= found.rank_bounds[0]
    # The error is in the bound, and it is larger than float32's own.
    evidence = solve(Partial(lambda: matvec), Form.flat(n, jnp.float32), goal, **settings)
    without = certify(evidence._replace(noise=np.zeros(())), goal).rank_bounds[0]
    assert certify(evidence, goal).rank_bounds[0] - without > 1e-4


@pytest.mark.parametrize("way", ["pass", "restarts"])
def test_the_side_of_a_threshold_is_told_though_usual_tolerances_do_not_tell_it(way):
    n = 300
    values = np.r_[1.0, np.random.default_rng(0).uniform(-0.5, 0.8, n - 1)]
    operator = Partial(lambda diagonal: lambda vector: diagonal * vector, jnp.asarray(values))
    usual = Goal(Ends(1, 0), 1e-3)
    plan = Plan.of(n, usual, 200, jnp.dtype(float))
    run = jax.jit(lambda key, numbers: plan.run(operator, key, numbers))

    def found(goal):
        key = jax.random.key(0)
        if way == "pass":
            evidence = evidence_of(run(key, goal.tolerances), plan)
        else:
            evidence = solve(operator, Form.flat(n, float), goal, max_matvecs=200, key=key)
        certificate = certify(evidence, goal)
        assert certificate.converged.all()
        low, high = certificate.intervals[0]
        assert low <= 1 <= high
        return low, high, int(evidence.num_matvecs)

    low, high, products = found(usual)
    for threshold in (1.0001, 1.001, 1.01):
        assert low < threshold < high
        closer = found(usual._replace(threshold=threshold))
        assert not closer[0] < threshold < closer[1]
        assert closer[2] > products
    # At the eigenvalue itself it cannot be told, and the search ends all the same.
    assert found(usual._replace(threshold=1.0))[2] < 100
    assert found(usual._replace(threshold=3.0)) == (low, high, products)
