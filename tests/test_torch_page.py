"""The page "From PyTorch" and its example run, and their numbers are those of PyTorch alone."""

import contextlib
import importlib.util
import io
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics import SpectrumConfig, cli, open_run
from dlf_dynamics.analysis import compute_spectrum, load_spectrum
from dlf_dynamics.analysis.linalg import eigensolver

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:  # by itself it may not be imported
    pytest.skip("torchax is not installed", allow_module_level=True)
F = torch.nn.functional

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_compilation", "host_loop")]

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "own" / "pytorch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def host_loop():
    """The eigensolver that is compiled sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigensolver, "PASS_SIZE", 0)
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Names of the page, with what its blocks print."""
    names, printed = {}, []
    with contextlib.chdir(tmp_path_factory.mktemp("page")):
        names["folder"] = Path.cwd()
        for code, _ in BLOCKS:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(code, "pytorch.md", "exec"), names)
            printed.append(output.getvalue())
    return names, printed


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def largest(loss, parameters):
    """The largest eigenvalue of the Hessian, by ARPACK from PyTorch's double backward."""
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))

    def product(vector):
        slope = gradient @ torch.tensor(vector.ravel())
        return flat(torch.autograd.grad(slope, parameters, retain_graph=True)).numpy()

    size = len(gradient)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return float(eigsh(operator, 1, which="LA", tol=1e-10, return_eigenvectors=False)[0])


def loaded(module, state):
    module.load_state_dict(state)
    return module.eval()


def test_it_prints_what_it_says(page):
    assert len(BLOCKS) == 6
    for (_, expected), printed in zip(BLOCKS, page[1], strict=True):
        assert printed == expected


def test_sharpness_of_checkpoints_is_pytorchs(page):
    names = page[0]
    assert list(names["values"]) == [0, 200, 400]
    for step, found in names["values"].items():
        module = loaded(names["module"], names["checkpoints"][step])
        loss = torch.sum((module(names["inputs"]) - names["targets"]) ** 2) / 100
        expected = largest(loss, list(module.parameters()))
        assert found.converged
        assert found.value == pytest.approx(expected, rel=1e-7)
        assert found.interval[0] <= expected <= found.interval[1]


def test_momentum_is_recorded_as_optax_has_it(page):
    """Opened again, its updates are made by optax and held against those that PyTorch made."""
    names = page[0]
    setup = (names["problem"], names["heavy_ball"], names["params"])
    run = open_run(names["folder"] / "momentum.h5", setup)
    found = compute_spectrum(run, SpectrumConfig(k=1, every=4, ntk_examples=0))
    assert found.thresholds[0] == pytest.approx(2 * 1.9 / 0.02, rel=1e-6)


def recorded(path, like):
    """Parameters at each checkpoint as PyTorch's tensors, which lie in the order of their names."""
    names = sorted(like)
    ends = np.cumsum([like[name].size for name in names])
    with h5py.File(path) as file:
        vectors = np.array(file["parameters/value"])
    for vector in vectors:
        parts = np.split(vector, ends[:-1])
        shaped = (part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True))
        yield {name: torch.tensor(part) for name, part in zip(names, shaped, strict=True)}


def test_batch_norm_has_its_own_statistics_at_each_checkpoint(page):
    names = page[0]
    path, module = names["folder"] / "cnn.h5", names["cnn"].eval()
    run = open_run(path, (names["problem_cnn"], None, names["params_cnn"]))
    found = compute_spectrum(run, SpectrumConfig(k=1, every=1, ntk_examples=0))
    images = torch.tensor(np.array(names["pictures"]))
    labels = torch.tensor(names["labels"][:40]).long()
    states = list(recorded(path, names["params_cnn"]))
    assert not torch.equal(states[0]["1.running_mean"], states[2]["1.running_mean"])
    for state, value in zip(states, found.hessian.iterate.eigenvalues[:, 0], strict=True):
        module.load_state_dict(state, strict=False)
        expected = largest(F.cross_entropy(module(images), labels), list(module.parameters()))
        assert value == pytest.approx(expected, rel=1e-6)


def test_the_example_goes_from_the_loop_to_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = DOCS / "examples" / "torch_loop.py"
    example = SimpleNamespace(**runpy.run_path(str(path)))
    found = example.main(steps=41)
    options = ["--every", "2", "--ntk-examples", "0", "--no-figures", "--quiet"]
    command = ["spectrum", "torch_loop.h5", "--problem", f"{path}:setup", *options]
    assert cli.main(command) == 0
    spectrum = load_spectrum("torch_loop.spectrum.h5")
    assert spectrum.hessian.steps.tolist() == [0, 20, 40]
    problem, _, params = example.setup()
    module, images = example.network(), torch.tensor(np.array(problem.inputs))
    targets = torch.eye(10)[np.array(problem.targets)]
    states = list(recorded("torch_loop.h5", params))[::2]
    for state, value in zip(states, spectrum.hessian.iterate.eigenvalues[:, 0], strict=True):
        module.load_state_dict(state)
        loss = torch.sum((module(images) - targets) ** 2) / len(images)
        assert value == pytest.approx(largest(loss, list(module.parameters())), rel=1e-6)
    assert spectrum.thresholds == pytest.approx(2 / 0.09, rel=1e-9)
    assert found.threshold == pytest.approx(2 / 0.09, rel=1e-9)
    assert found.verdict == "stable"


def test_a_tied_transformer_is_pytorchs(page):
    names = page[0]
    module, text = names["transformer"].eval(), torch.tensor(np.array(names["text"])).long()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        outputs = module(text[:, :-1])
        loss = F.cross_entropy(outputs.flatten(0, 1), text[:, 1:].flatten())
        expected = largest(loss, list(module.parameters()))
    assert names["found"].value == pytest.approx(expected, rel=1e-5)
