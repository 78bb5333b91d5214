"""The network of a run is written in several forms, and read from each with the same bits."""

import json
import shlex
import shutil

import numpy as np
import pytest

from experiments.config_flag import set_keys, split_arguments
from experiments.configs.checks import flat_values, read
from experiments.configs.default import get_config
from experiments.export.card import card, metadata, training_command
from experiments.export.forms import FORMS, read_forms
from experiments.export.network import network_of
from experiments.export.run import run
from experiments.folders.workdirs import CONFIG, FACTS, SUMMARY
from experiments.from_config.deployed_runs import STATE
from experiments.from_config.experiment import build
from experiments.from_config.facts import facts_of_files
from experiments.from_config.teachers import teachers
from experiments.from_config.weights import WEIGHTS, load_weights, save_network
from kd_local.interop import write_orbax
from kd_local.models import create
from tests.support import tiny
from tests.support.checkpoints import assert_same_bits

SHAPE = (8, 8, 1)
SUMMARY_OF_RUN = {
    "method": "kd", "network": "resnet8", "dataset": "digits", "teachers": ["resnet20"], "seed": 3,
    "epochs": 2, "steps": 46,
    "test_accuracy": 0.975, "parameters_deployed": 77754, "multiply_adds": 763520, "jax": "0.10.2",
    "teacher_accuracy": 0.9875, "agreement": 0.96,
}  # fmt: skip
FACTS_OF_RUN = {"images.train": 1437, "images.test": 360, "images.classes": 10,
                "images.mean": [77.89], "images.std": [95.87]}  # fmt: skip


def run_of(folder, network="resnet8", shape=SHAPE, **changes):
    """The folder of a run of KD that has ended; returns the folder and the network's variables."""
    config = get_config()
    set_keys(config, {"method": "kd", "network.name": network, "teacher.weights": "runs/teacher", "epochs": 2,
                      "optimizer.warmup_epochs": 1, "kd.temperature": 2.0, "seed": 3, **changes})  # fmt: skip
    variables = tiny.variables(create(network, classes=10, shortcut=config.network.shortcut), 5, shape)
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config.to_dict() | {"kd_local": "0.1.0"}))
    (folder / FACTS).write_text(json.dumps(FACTS_OF_RUN | {"images.shape": list(shape)}))
    (folder / SUMMARY).write_text(json.dumps(SUMMARY_OF_RUN | {"network": network}))
    save_network(variables, folder)
    return folder, dict(variables)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run, that of its network in all forms, and the network's variables."""
    root = tmp_path_factory.mktemp("export")
    folder, variables = run_of(root / "run")
    (root / "out").mkdir()  # an empty folder is replaced
    run(folder, root / "out", None, command="python -m experiments.export")
    return folder, root / "out", variables


def config_with(**values):
    config = get_config()
    set_keys(config, {key.replace("__", "."): value for key, value in values.items()})
    return config


def test_all_forms_and_a_card_are_written(exported):
    _, out, _ = exported
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "network.pth", "network.safetensors", "orbax"]
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_with_the_same_bits_as_teacher_and_as_start(exported, form):
    if form == "torch":
        pytest.importorskip("torch")
    _, out, variables = exported
    path = str(out / FORMS[form])
    config = config_with(method="kd", teacher__weights=path, teacher__network="resnet8")
    (teacher,) = teachers(config, classes=10, shape=SHAPE, normalisation=((77.89,), (95.87,)))
    assert_same_bits(dict(teacher.variables), variables)
    network = build(config_with(method="end_to_end", network__weights=path)).network
    assert_same_bits({key: dict(network.start[key]) for key in variables}, variables)


def test_a_run_is_bound_to_the_files_of_an_orbax_checkpoint(exported, tmp_path):
    _, out, _ = exported
    copied = shutil.copytree(out / "orbax", tmp_path / "copied")
    digests = [
        facts_of_files(config_with(network__weights=str(path)))["start.file"] for path in (out / "orbax", copied)
    ]
    assert digests[0] == digests[1]
    (copied / "manifest.ocdbt").write_bytes(b"")
    assert facts_of_files(config_with(network__weights=str(copied)))["start.file"] != digests[0]


def test_an_orbax_checkpoint_of_another_network_or_number_of_classes_is_noticed(exported, tmp_path, capsys):
    _, out, _ = exported
    with pytest.raises(ValueError, match="orbax: batch_stats/stage1/1/.* is missing"):
        build(config_with(network__name="resnet14", network__weights=str(out / "orbax")))
    write_orbax(tmp_path / "three", tiny.variables(create("resnet8", classes=3), 5, SHAPE))
    build(config_with(network__weights=str(tmp_path / "three")))
    assert "has 3 classes, the data have 10: the last layer starts new" in capsys.readouterr().err
    write_orbax(tmp_path / "other", {"params": {"dense": {"bias": np.ones(3, np.float32)}}})
    with pytest.raises(ValueError, match="other: batch_stats/.* is missing"):
        build(config_with(network__weights=str(tmp_path / "other")))


def test_the_folder_itself_is_refused_as_weights(exported):
    _, out, _ = exported
    config = config_with(method="kd", teacher__weights=str(out), teacher__network="resnet8")
    with pytest.raises(ValueError, match=f"is not the folder of a run, .* such as {out}/network.pth"):
        teachers(config, classes=10, shape=SHAPE, normalisation=((77.89,), (95.87,)))


def test_the_files_have_the_names_of_the_code_base_and_how_images_are_normalised(exported):
    folder, out, _ = exported
    content = (out / "network.safetensors").read_bytes()
    header = json.loads(content[8:][: int.from_bytes(content[:8], "little")])
    assert header.keys() >= {"conv1.weight", "layer1.0.bn1.running_var", "fc.bias"}
    assert header["__metadata__"] == metadata(network_of(folder)) == {
        "format": "pt", "code_base": "mdistiller", "network": "resnet8", "dataset": "digits",
        "mean": repr(77.89 / 255), "std": repr(95.87 / 255),
    }  # fmt: skip


def test_the_card_names_network_data_accuracies_seed_versions_and_commands(exported):
    _, out, _ = exported
    text = (out / "README.md").read_text()
    for part in (
        "# resnet8, trained on digits with kd\n",
        "| network | resnet8, 77,754 parameters, 763,520 multiply-adds an image |",
        "| images | 8 x 8 x 1 (height, width, channels) |",
        "| data | digits, 1,437 training images, 360 test images |",
        "| teacher | resnet20 (runs/teacher) |",
        "| teacher's accuracy | 98.75 %; it agrees with the student on 96.00 % of the test images |",
        "| test accuracy | 97.50 % |",
        "| training | epochs: 2, steps: 46, seed: 3, computed in float32 |",
        "| versions | trained with kd_local 0.1.0 and JAX 0.10.2, written with kd_local ",
        f"    --config.teacher.network=resnet8 --config.teacher.weights={out}/orbax --config.teacher.mean=0.305",
        f"    python -m experiments.evaluate --weights={out}/orbax --config.data.name=digits --config.data.mean=0.305",
        "    python -m experiments.export\n",
    ):
        assert part in text, part


def test_the_command_of_the_card_makes_the_config_of_the_run(tmp_path):
    folder, _ = run_of(tmp_path, **{"optimizer.milestones": (1,), "optimizer.schedule": "piecewise",
                                    "loss.class_weights": "balanced", "data.on_devices": True})  # fmt: skip
    exported = network_of(folder)
    python, option, program, *flags = shlex.split(training_command(exported))
    assert (python, option, program) == ("python", "-m", "experiments.train")
    _, texts = split_arguments(flags)
    config = get_config()
    set_keys(config, {name: read(name, text) for name, text in texts.items()})
    assert flat_values(config) == flat_values(exported.run.config)


def test_a_network_of_no_code_base_is_written_with_our_names(tmp_path, capsys):
    folder, variables = run_of(tmp_path / "run", "vit_ti16", (16, 16, 1))
    run(folder, tmp_path / "out", None, command="")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "network.safetensors", "orbax"]
    assert "note: no code base in PyTorch has vit_ti16: the names are those of this package" in capsys.readouterr().out
    assert "tensors by the names of kd_local" in (tmp_path / "out" / "README.md").read_text()
    for name in ("network.safetensors", "orbax"):
        found = load_weights(create("vit_ti16", classes=10), tmp_path / "out" / name)
        assert_same_bits({"params": found["params"]}, {"params": variables["params"]})
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "again", ["torch"], command="")
    assert "no state dict of it: leave torch out of --forms" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_shortcuts_without_weights_are_in_the_commands_of_the_card(tmp_path):
    folder, _ = run_of(tmp_path, **{"network.shortcut": "padding", "network.dtype": "bfloat16"})
    exported = network_of(folder)
    text = card(exported, ["safetensors"], tmp_path / "out", "")
    assert exported.code_base == "pytorch_resnet_cifar10" and "orbax" not in text
    assert text.count("shortcut=padding") == 4 and text.count("network.dtype=bfloat16") == 2


def test_runs_without_a_network_alone_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run: give one of experiments.train"):
        network_of(tmp_path)
    folder, _ = run_of(tmp_path)
    (folder / WEIGHTS).rename(folder / STATE)
    with pytest.raises(ValueError, match="is of kd: its deployed network is resnet8 with layers of the method, .*R0"):
        network_of(folder)
    (folder / STATE).unlink()
    with pytest.raises(ValueError, match=r"has no network.npz: expected the folder of a run that has ended"):
        network_of(folder)
    (folder / SUMMARY).unlink()
    with pytest.raises(ValueError, match=r"has not ended \(no summary.json\): the command of the run resumes it"):
        network_of(folder)


def test_weights_of_another_network_than_the_records_say_are_refused(tmp_path):
    folder, _ = run_of(tmp_path)
    save_network(tiny.variables(create("resnet14", classes=10), 5, SHAPE), folder)
    with pytest.raises(ValueError, match="stage1/1/.* is not a variable of this network"):
        network_of(folder)


def test_unknown_forms_are_refused():
    assert read_forms("torch, orbax,torch") == ("torch", "orbax")
    with pytest.raises(ValueError, match="unknown form 'pytorch': use orbax, safetensors or torch"):
        read_forms("orbax,pytorch")


def test_a_folder_that_cannot_be_written_is_refused(exported, tmp_path, capsys, monkeypatch):
    folder, _, _ = exported
    monkeypatch.setattr("experiments.export.run.write_safetensors", raising(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit) as stopped:
        run(folder, tmp_path / "out", ["safetensors"], command="")
    assert stopped.value.code == 1 and "cannot be written: No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def raising(error):
    def function(*_):
        raise error

    return function
