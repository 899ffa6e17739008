"""The paper's experiments: App. J's networks, one scenario through to its numbers, and the page."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lipprof
from examples.lipschitz import figure7, results, run
from examples.lipschitz.controls import eigenarc_on_equal
from examples.lipschitz.data import cifar10, mnist
from examples.lipschitz.networks import autoencoder, classifier, resnet18
from examples.lipschitz.presets import PRESETS, RIVAL_LR
from examples.lipschitz.scenarios import SCENARIOS
from examples.lipschitz.superiority import correlations
from examples.lipschitz.training import Experiment, Task
from examples.lipschitz.trials import ESTIMATES, Trial, read_trial
from lipprof.cli.app import app
from lipprof.errors import ConfigError, MissingExtraError


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def layers(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
@pytest.mark.parametrize("residual", [False, True])
def test_the_classifier_is_the_appendix(channels, size, residual):
    model = classifier(channels, size, residual=residual)
    convolutions = (25 * channels + 1) * 6 + (25 * 6 + 1) * 16
    assert count(model) == convolutions + 401 * 120 + 121 * 84 + 85 * 10
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)


def test_shortcuts_add_the_input_and_no_parameters():
    plain, residual = (classifier(residual=choice) for choice in (False, True))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in residual.parameters()]
    first = residual[0]
    for parameter in first.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(2, 3, 32, 32)
    output = first(image)
    assert torch.equal(output[:, :3], image[:, :, 2:30, 2:30])
    assert not output[:, 3:].any()


@pytest.mark.parametrize("width", [8, 64])
def test_resnet18_has_its_size(width):
    model = resnet18(width=width)
    convolutions = layers(model, nn.Conv2d)
    assert len(convolutions) == 1 + 16 + 3  # stem, blocks, projections
    assert len(layers(resnet18(width=width, shortcuts=False), nn.Conv2d)) == 17
    assert not list(model.buffers())  # GroupNorm keeps no statistics
    if width == 64:
        assert count(model) == count(resnet18(norm=nn.BatchNorm2d)) == 11_173_962
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_resnet18_without_its_branches_is_its_shortcuts():
    block = resnet18(width=4)[3]
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_the_autoencoder_is_the_appendix(channels, size):
    model = autoencoder(channels, size)
    encoder, bottleneck, decoder = model
    assert [
        (c.out_channels, c.kernel_size[0], c.padding[0]) for c in layers(encoder, nn.Conv2d)
    ] == [(16, 3, 1), (32, 3, 1), (32, 5, 2), (64, 5, 2)]
    widths = [layer.out_features for layer in layers(bottleneck, nn.Linear)]
    assert widths == [128, 64, 36, 18, 9, 18, 36, 64, 128, size**2 * 4]
    convolutions = layers(decoder, nn.Conv2d | nn.ConvTranspose2d)
    assert [c.kernel_size[0] for c in convolutions] == [2, 5, 5, 5, 2, 3, 5, 3]
    assert [c.padding[0] for c in convolutions] == [0, 2, 2, 2, 0, 1, 2, 1]
    assert [c.stride[0] for c in convolutions] == [2, 1, 1, 1, 2, 1, 1, 1]
    assert convolutions[-1].out_channels == channels
    image = torch.rand(2, channels, size, size)
    assert model(image).shape == image.shape


# --------------------------------------------------------------------------- data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10 and MNIST as the loaders expect them, of noise."""
    folder = tmp_path_factory.mktemp("experiment")
    generator = np.random.default_rng(0)
    np.savez(
        folder / "cifar10-subset.npz",
        train_images=generator.integers(0, 256, (40, 32, 32, 3), np.uint8),
        train_labels=generator.integers(0, 10, 40),
    )
    for name, header, shape in (("images-idx3", 16, (40, 28, 28)), ("labels-idx1", 8, 40)):
        numbers = generator.integers(0, 256 if header == 16 else 10, shape, np.uint8)
        packed = gzip.compress(bytes(header) + numbers.tobytes())
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(packed)
    return folder


def test_images_are_standardised_and_drawn_without_replacement(folder):
    cifar = cifar10([folder])
    assert cifar.inputs.shape == (40, 3, 32, 32)
    assert abs(float(cifar.inputs.mean())) < 1e-5
    assert 0 <= float(cifar.intensities.min()) < float(cifar.intensities.max()) <= 1
    drawn = cifar.sample(40, seed=1).labels
    assert torch.equal(drawn.sort().values, cifar.labels.sort().values)
    with pytest.raises(ConfigError, match="41 images"):
        cifar.sample(41, seed=0)


def test_missing_images_name_the_folder(tmp_path):
    with pytest.raises(MissingExtraError, match="--data FOLDER"):
        mnist([tmp_path], download=False)


# --------------------------------------------------------------------------- one scenario


@pytest.fixture(scope="module")
def trial(folder):
    """A smooth network on images of noise."""
    preset = replace(PRESETS["test"], steps=3)
    experiment = Experiment("cnn-smooth", preset, (folder,))
    run.train(experiment, "arc", seed=1, path=folder / "trial.h5")
    return folder / "trial.json"


def at_the_start(path):
    """The network and the loss of the trial before its first step, in float64."""
    task = Task(Experiment("cnn-smooth", PRESETS["test"], (path.parent,)), seed=1)
    images = replace(task.images, inputs=task.images.inputs.double())
    return task.model.double(), SCENARIOS["cnn-smooth"].loss(images)


def test_the_numbers_are_those_of_the_loss(trial):
    """Against differences of the loss in float64 along the top eigenvector."""
    read = read_trial(trial)
    model, loss = at_the_start(trial)
    pairs = lipprof.spectrum(model, loss, top=1, bottom=1, tol=1e-5, engine="retained")
    assert read.curvature[0] == pytest.approx(pairs.values.numpy(), rel=1e-3)
    parameters = list(model.parameters())
    before = nn.utils.parameters_to_vector(parameters).detach()

    def along(x):
        nn.utils.vector_to_parameters(before + x * vector, parameters)
        with torch.no_grad():
            return float(loss(model))

    for end in range(2):
        vector = pairs.vectors[end]
        h = 0.02
        slope = (along(h) - along(-h)) / (2 * h)
        vector = -vector if slope > 0 else vector  # eq. 1
        third = (along(2 * h) - 2 * along(h) + 2 * along(-h) - along(-2 * h)) / (2 * h**3)
        assert read.slope[0, end] == pytest.approx(abs(slope), rel=0.02, abs=1e-4)
        assert read.estimates["along"][0, end] == pytest.approx(abs(third), rel=0.05, abs=0.02)
        gamma, curvature = read.slope[0, end], read.curvature[0, end]
        newton = along(gamma / abs(curvature))
        expected = along(RIVAL_LR * gamma) - newton
        assert read.superiority[0, end] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_a_trial_has_both_ends_and_every_estimator(trial):
    read = read_trial(trial)
    assert read.iteration.tolist() == [0, 1, 2]
    assert (read.curvature[:, 0] > 0).all()
    assert (read.curvature[:, 1] < 0).all()
    assert set(read.estimates) == set(ESTIMATES)
    for name, series in read.estimates.items():
        assert series.shape == (3, 2), name
        assert not (series < 0).any(), name
    assert (read.estimates["exact"] >= read.estimates["along"]).all()
    assert read.loss[-1] < read.loss[0]


def test_the_page_has_what_was_measured(trial):
    page = results.page(trial.parent)
    assert "CNN with GELU and mean-pooling on CIFAR-10" in page
    for title in ESTIMATES.values():
        assert f"| cnn-smooth | {title} | " in page
    for part in page.split("\n\n"):
        if part.startswith("|"):
            assert len({line.count(" | ") for line in part.splitlines()}) == 1, part
    about = json.loads(trial.read_text())
    assert f"{about['parameters']:,}" in page


FULL_SIZE = {
    "cnn-cifar10": 62_006,
    "autoencoder-mnist": sum(p.numel() for p in autoencoder(1, 28).parameters()),
    "resnet18-cifar10": 11_173_962,
}


@pytest.mark.parametrize(
    "name",
    ["cnn-cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in list(FULL_SIZE)[1:])],
)
def test_the_papers_networks_start(name, folder, tmp_path):
    """At full size, with a batch and Krylov spaces that a CPU can afford."""
    preset = PRESETS["paper"]
    few = {network: replace(size, images=2) for network, size in preset.sizes.items()}
    preset = replace(preset.paced("arc", 2), sizes=few, max_matvecs=8, arc_matvecs=2)
    run.train(Experiment(name, preset, (folder,)), "arc", seed=0, path=tmp_path / "run.h5")
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["parameters"] == FULL_SIZE[name]
    with lipprof.open_run(tmp_path / "run.h5") as recorded:
        assert recorded["iteration"].tolist() == [0, 1]
        assert np.isfinite(recorded["eigenvalue"]).all()
        assert np.isfinite(recorded["loss"]).all()


# --------------------------------------------------------------------------- the runs beside it

RUNS = Path(results.__file__).parent / "runs"
kept = pytest.mark.parametrize("path", sorted(RUNS.glob("*.h5")), ids=lambda path: path.stem)


@kept
def test_a_kept_run_is_whole_and_small(path):
    assert path.stat().st_size < 200_000
    with lipprof.open_run(path) as recorded:
        assert recorded.finished
        assert recorded["iteration"].tolist() == list(range(0, 40, 2))
        assert np.isfinite(recorded["lipschitz_along"][0]).all()
    result = CliRunner().invoke(app, ["report", str(path)])
    assert result.exit_code == 0, result.output
    assert "EigenARC" in result.output


def test_the_page_of_the_kept_runs_follows_from_them():
    assert len(list(RUNS.glob("*.h5"))) > 0
    assert results.page(RUNS) == (RUNS / "results.md").read_text(encoding="utf-8")


# --------------------------------------------------------------------------- statistics


def synthetic(*, upper, lower, seed=0):
    generator = np.random.default_rng(seed)
    curvature = np.stack([generator.uniform(1, 2, 40), -generator.uniform(1, 2, 40)], axis=1)
    series = np.stack([upper, lower], axis=1)
    return Trial(
        about={"scenario": "cnn-mnist", "optimizer": "arc", "parameters": 1, "images": 1},
        iteration=np.arange(40),
        loss=np.ones(40),
        lr=0.1,
        curvature=curvature,
        slope=generator.uniform(0.1, 1, (40, 2)),
        estimates=dict.fromkeys(ESTIMATES, series),
        superiority=-series,
        excess=series - 2,
    )


def test_a_gap_that_widens_is_seen():
    steps = np.arange(40)
    ratio = 100 * 10 ** (0.05 * steps)
    assert results.trend(ratio) == pytest.approx(0.5)
    assert results.verdict([100, 4]) == "holds"
    assert results.verdict([100, 2]) == "no"
    assert results.verdict([0.01, 0.2]) == "reversed"


def test_superiority_that_falls_with_lipschitz_is_correlated_so():
    lipschitz = np.random.default_rng(1).uniform(1, 9, 40)
    found = correlations([synthetic(upper=lipschitz, lower=lipschitz)], "along")
    assert found.pearson.r == pytest.approx(-1)
    assert found.given_scale.r == pytest.approx(-1)


def test_eigenarc_keeps_to_one_lipschitz_parameter_where_it_started_right():
    """With next to no λ nothing tells the ends apart."""
    curvature, slope = np.full((12, 2), 1e-9) * [1, -1], np.ones((12, 2))
    found = eigenarc_on_equal(curvature, slope, 5.0)
    assert found[-1, 0] == found[-1, 1]
    assert 5 / 4 <= found[-1, 0] <= 5 * 2


def test_figure_7_compares_fosi_with_its_base_early_and_late(tmp_path):
    ends = {"sgd": 1e-2, "fosi-sgd": 1e-4, "adam": 1e-3, "fosi-adam": np.nan}
    for name, end in ends.items():
        losses = np.geomspace(1, end, 400) if end > 0 else [1.0, 1.0, np.nan]
        trial = {"scenario": "cnn-mnist", "optimizer": name, "losses": list(losses)}
        (tmp_path / f"{name}-seed0.json").write_text(json.dumps(trial))
    lines = figure7.page(tmp_path).splitlines()[2:]
    late = [line.strip("| ").split(" | ") for line in lines if "| 400 |" in line]
    assert [row[-2:] for row in late] == [["1 of 1", "0 of 1"], ["0 of 1", "1 of 1"]]
    assert float(late[0][-3]) == pytest.approx(100, rel=0.1)


def test_a_short_figure_7_calls_nothing_diverged(tmp_path):
    for name in ("sgd", "fosi-sgd", "adam", "fosi-adam"):
        trial = {"scenario": "cnn-mnist", "optimizer": name, "losses": [2.0, 1.0, 0.5]}
        (tmp_path / f"{name}-seed0.json").write_text(json.dumps(trial))
    lines = figure7.page(tmp_path).splitlines()[2:]
    assert len(lines) == 4
    assert all(line.endswith("| 0 of 1 | 0 of 1 |") for line in lines)


def test_fosi_is_its_base_until_the_first_look(folder, tmp_path):
    steps = figure7.LOOK_EVERY + 3
    experiment = Experiment("cnn-smooth", replace(PRESETS["test"], steps=steps), (folder,))
    plain, fosi = (
        figure7.losses(experiment, name, 0, tmp_path / "run.h5") for name in ("sgd", "fosi-sgd")
    )
    assert len(plain) == len(fosi) == steps
    looked = figure7.LOOK_EVERY + 1  # losses before the first step that differs
    assert fosi[:looked] == plain[:looked]
    assert fosi[looked] != plain[looked]
