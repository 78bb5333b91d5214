"""Mistakes on the command line: each is refused at once, with one message and a way out."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.ending import ENDING
from experiments.train import __main__ as program

CONFIGS = Path(program.__file__).parents[1] / "configs"
VIT, CIFAR = str(CONFIGS / "contsup" / "vit.py"), str(CONFIGS / "contsup" / "cifar10.py")

BAD_INPUT: list[tuple[list[str], str]] = [
    (["--config.data.name=cifr10"], r"unknown dataset 'cifr10': use .*cifar10.* \(nearest: cifar10\)"),
    (["--config.data.name=imagenet"], "unknown dataset 'imagenet': use cifar10, cifar100, digits"),
    (["--config.data.name=cifar10", "--config.data.data_dir=/nowhere"], r"/nowhere/cifar10.*download_and_prepare"),
    (["--config.data.data_dir=/nowhere"], "data_dir '/nowhere': digits is part of the package"),
    (["--config.data.train_examples=1438"], "train_examples 1438 of 1437 training examples"),
    (["--config.data.mean=77.7"], r"data.mean is '77.7': use a number in \[0, 1\] for .*, such as 0.3047 \(these div"),
    (
        ["--config.data.mean=-0.1"],
        r"data.mean is '-0.1': use a number in \[0, 1\] for each channel, such as 0",
    ),
    (["--config.data.mean=0.4,0.5,0.6"], "data.mean is '0.4,0.5,0.6': use a number in .* for each of the 1 channels"),
    (["--config.data.mean=nan"], r"data.mean is 'nan': use a number in \[0, 1\]"),
    (["--config.data.mean=light"], r"data.mean is 'light': use a number in .*, such as 0.485,0.456,0.406\n"),
    (["--config.data.std=0"], r"data.std is '0': use a number in \[0.001, 1\] for each channel, such as 0"),
    (
        ["--config.data.std=256"],
        r"data.std is '256': use a number in \[0.001, 1\] for each channel, such as 0.229,0.224,0.225\n",
    ),
    (["--config.data.validation_examples=1437"], "validation_examples 1437 of 1437"),
    (["--config.network.name=resnet31"], "unknown network 'resnet31': the nearest of [0-9]+ are resnet32, "),
    (["--config.network.name=vit"], "unknown network 'vit': the nearest of 52 are vit_"),
    (["--config.network.dtype=float16"], r"unknown dtype 'float16': use float32 or bfloat16 \(nearest: \w*float"),
    (["--config.network.shortcut=identity"], "unknown shortcut 'identity': use projection or padding"),
    (["--config.method=contsupp"], "unknown method 'contsupp': the nearest of [0-9]+ are contsup, "),
    (["--config.local.context=R-1"], "unknown context 'R-1': use R0, E, R1, R1E, or Rn / RnE with n >= 1"),
    (["--config.local.context=r1e"], "unknown context 'r1e': use R0, E, R1, R1E"),
    (["--config.local.context=R0E"], "unknown context 'R0E'"),
    (["--config.local.head=3c1f"], r"unknown head '3c1f': use 0c1f, .* or pool \(nearest: "),
    (
        ["--config.local.loss=contrst"],
        "unknown local loss 'contrst': use softmax, contrast or predsim .nearest: contrast",
    ),
    (["--config.local.loss_scale=1,2"], r"loss scale \(1.0, 2.0\): give four numbers >= 0"),
    (["--config.local.loss_scale=1,2,3,-4"], "loss scale .*: give four numbers >= 0"),
    (
        ["--config.local.loss_scale=publishd"],
        "local.loss_scale is 'publishd': use 'published', or four numbers, .*such as 5,0.05,0.2,0.5",
    ),
    (["--config.local.image_encoder=strided"], "unknown image encoder 'strided': use full or pooled"),
    (["--config.local.answer=module3"], r"unknown answer 'module3': use .*last or ensemble \(nearest: module03\)"),
    (["--config.local.answer=module00", "--config.local.loss=contrast"], "unknown answer 'module00': use"),
    (["--config.local.boundaries=published"], "memory-balanced boundaries are known for resnet32 and resnet110 only"),
    (
        ["--config.local.boundaries=published", "--config.network.name=resnet110", "--config.local.modules=8"],
        "no memory-balanced boundaries are known for 8 modules of this network: use 2, 3, 4 modules",
    ),
    (["--config.local.modules=6"], "6 modules for a network of 5 blocks: use 1 to 5"),
    (
        ["--config.local.boundaries=balance"],
        "unknown rule for boundaries 'balance': use equal, balanced, published, single, man, man_plus or stages",
    ),
    (
        ["--config.local.auxiliary=momentum", "--config.local.boundaries=balanced"],
        "local.auxiliary is 'momentum', .* also tries a cut before the network's last layers: use boundaries by a rule",
    ),
    (
        ["--config.local.auxiliary=momentum", "--config.momentum.faithful", "--config.momentum.blocks=2"],
        "momentum.faithful is true, but with momentum.blocks=2 the stem has no head: leave one out",
    ),
    (
        ["--config.local.auxiliary=momentum", "--config.local.modules=5"],
        "MAN copies 1 block after stage3/0, but the network's last layers, head, cannot be copied: cut after stage2/0",
    ),
    (
        ["--config.local.remat=heads"],
        r"unknown name in remat 'heads': use auto, none, blocks, contexts, ",
    ),
    (["--config.local.memory_budget=8"], "'8' is not a number of bytes: use a number and a unit, such as 8GiB"),
    (["--config.step=joined", "--config.local.memory_budget=8GiB"], "step is 'joined', but balanced boundaries"),
    (["--config.step=joined", "--config.local.boundaries=balanced"], "use step=separate and steps_per_call=1, or"),
    (["--config.steps_per_call=2", "--config.local.memory_budget=8GiB"], "step is 'joined', but balanced boundaries"),
    (["--config.steps_per_call=2", "--config.step=separate"], "several steps per call need the form 'joined'"),
    (["--config.steps_per_call=23"], "steps_per_call is 23, but an epoch of this run has 22 steps with a full batch"),
    (["--config.steps_per_call=2", "--config.mesh.module=2"], "steps_per_call is 2 with 2 groups of devices: use 1"),
    (["--config.step=join"], r"unknown form of the step 'join': use separate or joined"),
    (["--config.local.boundaries=stem,stage1/1,stage2/0"], r"unknown boundary 'stage1/1': .*\(nearest: stage1/0\)"),
    (["--config.local.boundaries=stem,stage1/0"], "4 modules, but 2 boundaries .*, which make 3"),
    (
        ["--config.local.boundaries=stage1/0,stem,stage2/0"],
        "repeated or not in the network.s order: use stem, stage1/0",
    ),
    (["--config.batch_size=2000"], "batch_size 2000 for 1437 examples: use 1 to 1437"),
    (["--config.data.train_examples=32"], "batch_size 64 for 32 examples: use 1 to 32"),
    (["--config.mesh.data=3"], "a batch of 64 cannot be divided among 3 devices: use a multiple of 3, such as 66"),
    (["--config.mesh.data=16"], r"a mesh of 16 devices .* there are 8 .*XLA_FLAGS=--xla_force_host_platform"),
    (["--config.network.name=vit_ti16"], "images of 8x8 do not divide into patches of 16x16: crop or resize them"),
    (["--config.mesh.module=5"], r"5 groups of devices for 4 pieces of a step: use 1 to 4 \(mesh.module\)"),
    (
        ["--config.mesh.module=3", "--config.mesh.data=4"],
        "and 3 on the module axis, .*: use 8 or fewer in all",
    ),
    (["--config.mesh.module=2", "--config.step=joined"], "2 groups of devices for 1 pieces of a step"),
    (["--config.mesh.shard=optimiser"], "unknown part of the state to shard 'optimiser': .*optimizer"),
    (["--config.mesh.batch_norm=local"], "unknown batch normalisation 'local': use global or device"),
    (["--config.mesh.placement=flops"], "unknown placement 'flops': use operations or time"),
    (["--config.optimizer.name=sdg"], r"unknown optimizer 'sdg': use sgd, .* \(nearest: sgd\)"),
    (["--config.optimizer.schedule=cosin"], r"unknown schedule 'cosin': .*\(nearest: cosine\)"),
    (["--config.optimizer.schedule=piecewise"], r"milestones are \(\): .* increasing epochs"),
    (
        ["--config.optimizer.schedule=piecewise", "--config.optimizer.milestones=(20,10)"],
        r"optimizer.milestones is \(20, 10\): use increasing numbers with commas between, .*, such as 60,80",
    ),
    (
        ["--config.optimizer.schedule=piecewise", "--config.optimizer.milestones=(20,)", "--config.optimizer.decay=2"],
        r"optimizer.decay is 2.0: use a number in \[1e-06, 1\], such as 0.1",
    ),
    (["--config.block_kd.stones=some"], r"stones is 'some': use all, or the numbers of some stones, such as \(2, 3\)"),
    (
        ["--config.optimizer.name=adam", "--config.optimizer.momentum=0.9"],
        "optimizer.momentum is 0.9, which has an effect only with optimizer.name=sgd: leave it out",
    ),
    (
        ["--config.optimizer.name=lion", "--config.optimizer.nesterov"],
        "optimizer.nesterov is true, which .* only with optimizer.name=sgd: .*optimizer.nesterov=none",
    ),
    (["--config.optimizer.momentum=0", "--config.optimizer.nesterov"], "nesterov is True, but momentum is 0"),
    (["--config.optimizer.milestones=(3,)"], "optimizer.milestones is 3, .* only with optimizer.schedule=piecewise"),
    (["--config.optimizer.decay=0.5"], "optimizer.decay is 0.5, .* only with optimizer.schedule=piecewise"),
    (
        ["--config.optimizer.warmup_epochs=0", "--config.optimizer.warmup_rate=0.1"],
        "only with optimizer.warmup_epochs above 0",
    ),
    (["--config.optimizer.accumulate=24"], "accumulate is 24 for 23 batches: use 1 .* to 23, or smaller batches"),
    (["--config.optimizer.accumulate=4", "--config.steps=3"], "accumulate is 4 for 3 batches: use 1 .* to 3"),
    (["--config.batchsize=64"], "unknown config key 'batchsize': the nearest are batch_size, .*; --help lists all"),
    (["--config.model=resnet8"], "unknown config key 'model': the nearest are network.name, "),
    (["--config.dataset=digits"], "unknown config key 'dataset': the nearest are data.name, "),
    (["--config.weight-decay=1e-4"], "unknown config key 'weight-decay': the nearest are optimizer.weight_decay, "),
    (["--config.kd.T=4"], "unknown config key 'kd.T': the nearest are kd."),
    (["--config.EPOCHS=3"], "unknown config key 'EPOCHS': the nearest are epochs, "),
    (["--config.epochs=\uff11\uff12"], "epochs is '\uff11\uff12': use a whole number from 1 to 100000"),
    (["--config.epochs=10k"], "epochs is '10k': use a whole number"),
    (["--config.optimizer.learning_rate=\u22120.1"], "optimizer.learning_rate is '\u22120.1': use a number in"),
    (["--config.optimizer.learning_rate=1e-3s"], "optimizer.learning_rate is '1e-3s': use a number in"),
    (["--config.optimizer.learning_rate=0,1"], "optimizer.learning_rate is '0,1': use a number in"),
    (["--config.optimizer.learning_rate=50%"], "optimizer.learning_rate is '50%': use a number in"),
    (["--config.data.mean=\uff10.\uff15"], "data.mean is '\uff10.\uff15': use a number in"),
    (["--config.data.augment=yes please"], "data.augment is 'yes please': use true or false"),
    (["--config.batch_size=32x32"], "batch_size is '32x32': use a whole number"),
    (["--config.batch_size=64,"], "batch_size is '64,': use a whole number"),
    (["--config.local.context=r1e"], r"local.context: unknown context 'r1e': use R0, .* \(nearest: R1E\)"),
    (["--config.local.context=R\uff11"], "local.context: unknown context 'R\uff11': use R0, "),
    (["--config.local.remat=auto,head"], "local.remat: name in remat 'auto' with others: use it alone"),
    (["--config.local.boundaries=stage1"], "unknown rule for boundaries 'stage1': .*; or blocks: stem,stage1/0"),
    (["--config.local.boundaries=stage1/0;stage2/0"], "unknown boundary 'stage1/0;stage2/0': use stem, stage1/0"),
    (
        ["--config.local.decoder=true", "--config.local.loss_scale=1;2;3;4"],
        "error: local.loss_scale is '1;2;3;4': use 'published', or four numbers, separated by commas",
    ),
    (["--config=" + CIFAR + ":k=8;context=R1"], "option 'k=8;context=R1': expected k=int, such as k="),
    (["--config=" + CIFAR, "--config=" + VIT], "--config is given twice: give one config file"),
    (["--config=" + CIFAR + ":k=8,k=16"], "option 'k' is given twice: give it once"),
    (["--config=" + CIFAR + ":k=\uff18"], "expected k=int, such as k="),
    (["--config="], "--config is '': give a config file, or leave it out"),
    (["--config.network.name=ResNet-8"], "unknown network 'ResNet-8': the nearest of [0-9]+ are resnet8"),
    (["--config.local.loss=contrast", "--config.local.answer=ensemble"], "no head before the last module classifies"),
    (["--config.method=block_kd", "--config.block_kd.stones=(1"], r"stones is '\(1': use all, or the numbers"),
    (["--config.method=block_kd", "--config.block_kd.stones=1,,2"], "stones is '1,,2': use all, or the numbers"),
    (["--config.data.workers=4"], "data.workers is 4, .* only with a data set other than digits"),
    (["--config.optimizer.lr=1"], "unknown config key 'optimizer.lr': the nearest are optimizer.learning_rate, "),
    (["--config.local=3"], "config key 'local' is a group: set one of local.modules, .*, or another of its 14 keys"),
    (["--config=nothing.py"], "no config file 'nothing.py'"),
    (["--config=" + CIFAR + ":modules=8"], "unknown option 'modules': use k, context or batch"),
    (["--config=" + CIFAR + ":k=many"], "option 'k=many': expected k=int, such as k=16"),
    (["--confg=default.py"], r"Unknown command line flag 'confg'.*config"),
    (["digits"], "unexpected argument 'digits': use flags, such as --NAME=VALUE"),
    (["--processes=two"], "--processes=two: use an integer"),
    (["--distributed=maybe"], "--distributed=maybe: use true or false"),
    (["--processes=2"], "--processes is set without --distributed: add --distributed, or leave out --processes"),
    (
        ["--config=" + VIT, "--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere"],
        "no prepared imagenet2012 in /nowhere/imagenet2012: give",
    ),
    (["--config.data.std=1e-30"], r"data.std is '1e-30': use a number in \[0.001, 1\]"),
    (["--config.epochs=1", "--config.optimizer.warmup_epochs=0"], "epochs is 1, .* rate 0 .*: use 2 epochs"),
    (
        ["--config.optimizer.schedule=piecewise", "--config.optimizer.milestones=10,30"],
        r"milestones are \(10, 30\): a piecewise schedule of 30 epochs needs .* before the last one",
    ),
    (["--config.local.memory_budget=8GiB", "--config.local.boundaries=stem"], "only with local.boundaries=equal or"),
    (["--config.teacher.weights=x", "--config.kd.weight=2"], "teacher.weights is x, which .*; kd.weight is 2.0, which"),
    (["--flagfile=/nowhere"], "a flag file cannot be read: .*/nowhere"),
    (["--workdir=/proc/nowhere"], "workdir '/proc/nowhere' cannot be used: .*; use another --workdir"),
]

TEACHERS: list[tuple[list[str], str]] = [
    (["--config.teacher.weights={teacher},{teacher}/."], "teacher.weights names .* twice: name each teacher once"),
    (["--config.teacher.weights="], "teacher.weights is '': use a path, or none"),
    (["--config.teacher.cache="], "teacher.cache is '': use a path, or none"),
    (["--config.teacher.weights=$KD_LOCAL_NOWHERE/x"], "the environment variable KD_LOCAL_NOWHERE is not set"),
    ([], "teacher.weights is not set: method 'kd' needs a trained teacher; give a file of weights or the folder"),
    (
        ["--config.teacher.weights=nowhere.npz"],
        "teacher.weights 'nowhere.npz': there is no such file or folder",
    ),
    (
        ["--config.teacher.weights=nowhere.npz", "--config.teacher.network=resnet20"],
        "teacher.weights 'nowhere.npz': there is no such file",
    ),
    (["--config.teacher.weights={teacher}", "--config.teacher.network=resnet20"], "is a run of resnet8, but"),
    (
        ["--config.teacher.weights={teacher}", "--config.teacher.network=resnet8,resnet8"],
        "teacher.network names 2 networks, but teacher.weights has 1 paths: give as many",
    ),
    (
        ["--config.teacher.weights={teacher}/network.npz", "--config.teacher.network=resnet14"],
        r"stage1/1/conv1/norm/mean is missing, expected \(16,\)",
    ),
    (["--config.teacher.weights={empty}"], "is not the folder of a run, so its network is unknown"),
    (["--config.teacher.weights={empty}", "--config.teacher.network=resnet8"], "is not the folder of a run"),
    (
        ["--config.method=block_kd", "--config.block_kd.stones=7", "--config.teacher.weights={teacher}"],
        r"stones is \(7,\): use all, or numbers from 1 to 3",
    ),
    (
        ["--config.method=fitnet", "--config.fitnet.stage=9", "--config.teacher.weights={teacher}"],
        "stage is 9: use a stage of the student that is paired with a stage of the teacher: 0, 1, 2, 3",
    ),
    (["--config.teacher.weights={teacher}", "--config.teacher.dtype=half"], "unknown dtype 'half'"),
    (["--config.kd.temperature=0"], "temperature is 0"),
    (["--config.block_kd.distance=l2"], "unknown logit distance 'l2': use kd, dkd, mlkd, dist,"),
    (["--config.method=blockkd"], r"unknown method 'blockkd': the nearest of [0-9]+ are block_kd, "),
    (
        ["--config.teacher.weights={teacher}", "--config.data.mean=0.5,0.5"],
        r"data.mean is '0.5,0.5': use a number in \[0, 1\] for each of the 1 channels",
    ),
]


def start(arguments: list[str], workdir: Path) -> tuple[int, str, str]:
    """The program's exit status, standard output and standard error, up to where it would train."""
    argv = ["train", f"--workdir={workdir}", *arguments]
    out, err = io.StringIO(), io.StringIO()
    # Overrides of a config are found in sys.argv.
    with (
        mock.patch.object(sys, "argv", argv),
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        flags.FLAGS.unparse_flags()
        try:
            program.main(program.parse(argv))
        except SystemExit as stopped:
            return int(stopped.code or 0), out.getvalue(), err.getvalue()
        except Trains:
            return 0, out.getvalue(), err.getvalue()
        finally:
            ENDING.clean()  # as at the end of the process
    raise AssertionError("neither refused nor trained")


def assert_refused(arguments: list[str], message: str, workdir: Path) -> str:
    """Before anything is written, with status 2 and one message, which is returned."""
    status, out, err = start(arguments, workdir)
    assert status == 2
    assert "Traceback" not in out + err
    assert err.startswith("error: ")
    assert err.count("error:") == 1
    assert re.search(message, err, re.DOTALL), err
    assert not workdir.exists()
    return err


class Trains(Exception):
    pass


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    def stop(*_, **__):
        raise Trains

    monkeypatch.setattr("experiments.train.run.train", stop)


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_input_is_refused(arguments, message, tmp_path):
    assert_refused(arguments, message, tmp_path / "run")


@pytest.mark.parametrize(("arguments", "message"), TEACHERS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_bad_teachers_are_refused(arguments, message, teacher_run, tmp_path):
    arguments = [argument.format(teacher=teacher_run, empty=tmp_path) for argument in arguments]
    assert assert_refused(["--config.method=kd", *arguments], message, tmp_path / "run").count("\n") == 1


def test_a_root_as_workdir_is_refused():
    status, _, err = start(["--workdir=/"], Path("/proc/nowhere"))
    assert status == 2
    assert "workdir is '/', the root of the file system" in err


def test_none_unsets_a_key_and_a_flag_file_sets_one(tmp_path):
    (tmp_path / "flags").write_text("--config.data.mean=0.4\n--config.seed=3\n")
    arguments = [f"--flagfile={tmp_path / 'flags'}", "--config.data.mean=none", "--config.steps="]
    assert start(arguments, tmp_path / "run")[0] == 0
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (recorded["data"]["mean"], recorded["seed"], recorded["steps"]) == (None, 3, None)


CONFIG_FILES: list[tuple[str, str]] = [
    ("def f(:", r"file.py:1: invalid syntax"),
    ("import nowhere_at_all", r"file.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("x = 1", r"has no function get_config"),
    ("def get_config():\n    return None", r"file.py: get_config returned NoneType: return a ConfigDict"),
    ("def get_config():\n    return {'epochs': 3}", r"get_config returned dict"),
    ("def get_config():\n    raise SystemExit(0)", r"file.py:2: SystemExit: 0"),
    ("\0", r"file.py"),
    (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'epochs': 3})",
        "the config has no method, seed, batch_size, steps, network.name and .* more: start from",
    ),
    *(
        (f"from experiments.configs import default\ndef get_config():\n    config = default.get_config()\n    {line}"
         "\n    return config", message)
        for line, message in (
            ("config.optimizer.lr = 0.5", r"file.py:4: unknown config key 'optimizer.lr': the nearest are opt"),
            ("config.epochs = None", r"file.py:4: "),
            ("config.epochs = 'many'", r"file.py:4: "),
            ("config.epochs = 0", r"file.py:4: epochs is 0: use a whole number"),
            ("config.optimizer.milestones = ('a',)", r"file.py:4: optimizer.milestones is \('a',\): use increasing"),
            ("config.optimizer.learning_rate = float('nan')", r"file.py:4: optimizer.learning_rate is nan: use"),
            ("config.teacher.weights = 'x'", "teacher.weights is x, which has an effect only with"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), CONFIG_FILES, ids=lambda text: "")
def test_config_files_that_are_refused(text, message, tmp_path):
    (tmp_path / "file.py").write_text(text)
    err = assert_refused([f"--config={tmp_path / 'file.py'}"], message, tmp_path / "run")
    assert err.count("\n") == 1


def test_the_defaults_are_accepted(tmp_path):
    assert start([], tmp_path / "run")[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["local"]["modules"] == 4


@pytest.mark.parametrize("schedule", ["contsup", "cosine", "linear"])
def test_a_run_shorter_than_its_warmup_is_accepted(schedule, tmp_path):
    assert start(["--config.epochs=1", f"--config.optimizer.schedule={schedule}"], tmp_path / "run")[0] == 0


def test_a_workdir_of_another_config_is_refused_with_the_difference(tmp_path):
    assert start(["--config.seed=1"], tmp_path)[0] == 0
    status, _, err = start(["--config.seed=2", "--config.local.context=R0"], tmp_path)
    assert status == 2
    assert '  local.context: "R1E" there, "R0" now\n  seed: 1 there, 2 now\n' in err
    assert "use another --workdir" in err
    assert start(["--config.seed=1"], tmp_path)[0] == 0


def test_options_that_do_not_change_a_step_may_change(tmp_path):
    assert start([], tmp_path)[0] == 0
    assert start(["--config.mesh.data=2", "--config.steps=3", "--config.checkpoint.keep=1"], tmp_path)[0] == 0


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    status, _, err = start([], tmp_path)
    assert status == 2
    assert "config.json' is damaged" in err
