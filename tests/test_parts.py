"""Parts of unfinished results whose digest is right and whose arrays are not what was computed."""

import dataclasses
import shutil

import numpy as np
import pytest

from dlf_dynamics import parts, resultfile
from dlf_dynamics.cli import main
from dlf_dynamics.parts import Parts

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRAIN = [
    "train",
    "--quiet",
    "--data.points-per-class",
    "6",
    "--model.widths",
    "3",
    "--model.activation",
    "tanh",
    "--schedule.period",
    "60",
    "--schedule.amplitude",
    "20",
    "--optimizer.learning-rate",
    "8",
    "--steps",
    "130",
    "--checkpoint-every",
    "4",
    "-o",
    "run.h5",
]
ANALYSES = {
    "spectrum": ["--quiet", "--no-figures", "--ntk-examples", "6", "--density"],
    "bifurcations": ["--quiet", "--no-figures", "--every", "10", "--diagrams", "none"],
}
PARTS = {
    "spectrum": ("hessian-0", "ntk-0", "density-ggn-"),
    "bifurcations": ("motion-0", "located", "instability"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with the parts of its analyses, as if these had been killed at their very end."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Parts, "clear", lambda self: None)
        assert main(TRAIN) == 0
        for analysis, options in ANALYSES.items():
            assert main([analysis, "run.h5", *options]) == 0
    return folder


def mutations(array):
    """What else could stand in the place of an array, or none in its place."""
    yield None
    yield array.astype(complex) if array.dtype.kind in "bif" else np.zeros(3)
    yield array[..., None]
    yield np.concatenate([array, array[:1]]) if array.ndim and len(array) else np.ones(2)
    yield np.array([b"a", b"b"])
    yield array[..., :-1] if array.ndim else np.bytes_("text")
    yield np.zeros((0, *array.shape[1:])) if array.ndim else np.zeros((0, 2))


def mutated(path, name, number):
    """Writes the part with one of its arrays changed, removed or of another name."""
    with resultfile.reading(path, resultfile.FORMAT) as file:
        found = resultfile._content(file, resultfile.attribute(file, "analysis"))
    choices = list(mutations(np.asarray(found.arrays[name])))
    array = choices[number % len(choices)]
    arrays = {key: value for key, value in found.arrays.items() if key != name}
    if array is not None:
        arrays[name] = array
    resultfile.write(path, dataclasses.replace(found, arrays=arrays))


@pytest.mark.parametrize(("analysis", "part"), [(a, p) for a in PARTS for p in PARTS[a]])
def test_a_part_that_holds_something_else_is_one_line(
    analysis, part, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(folder / "run.h5", "run.h5")
    original, begun = folder / f"run.{analysis}.parts", tmp_path / f"run.{analysis}.parts"
    (path,) = sorted(original.glob(f"{part}*.h5"))[:1]
    names = sorted(resultfile.read(path, f"{analysis} part", None).arrays.keys() - {"deviation"})
    for number, name in enumerate(names[:: 1 + len(names) // 10]):
        shutil.copytree(original, begun)
        mutated(begun / path.name, name, number)
        capsys.readouterr()
        assert main([analysis, "run.h5", *ANALYSES[analysis], "--resume"]) == 2, name
        told = capsys.readouterr().err
        assert told.startswith(f"dlf-dynamics: {begun.name}/{path.name} is damaged: "), told
        assert told.endswith("; leave --resume out to start anew\n")
        assert told.count("\n") == 1
        shutil.rmtree(begun)


@pytest.mark.parametrize("analysis", PARTS)
def test_parts_that_hold_what_was_computed_are_used(
    analysis, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(folder / "run.h5", "run.h5")
    shutil.copytree(folder / f"run.{analysis}.parts", f"run.{analysis}.parts")
    monkeypatch.setattr(parts, "write", None)  # what is computed would be written
    before = capsys.readouterr()
    assert main([analysis, "run.h5", *ANALYSES[analysis], "--resume"]) == 0, before
