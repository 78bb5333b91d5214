"""Mistakes are refused before JAX is imported, by every program."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, command, refused

SLOW = (
    *("jax", "jaxlib", "flax", "optax", "orbax", "numpy"),
    *("matplotlib", "tensorflow_datasets", "tensorboardX", "nbclient"),
)
CONFIGS = "experiments/configs"
BROKEN = "--config={folder}/broken.py"
# Of every program with a config; afterwards those of one program.
OF_CONFIGS = [
    (["--config.epoch=3"], "unknown config key 'epoch': the nearest are epochs"),
    (["--workdr=x"], "Unknown command line flag 'workdr'"),
    (["--config.batch_size=many"], "batch_size is 'many'"),
    (["--config.network.name=resnet9"], "unknown network 'resnet9': the nearest of .* are resnet"),
    (["--config.data.name=cifr10"], "unknown dataset 'cifr10'"),
    ([BROKEN], r"broken.py:1: .*syntax error"),
    (["--config=README.md"], "is no Python file"),
    (["--config=nowhere.py"], "no config file"),
    (["--flagfile=nowhere"], "a flag file cannot be read"),
    (["--workdir=README.md"], "is a file: give a folder"),
    (["--workdir=README.md/x"], "cannot be made, because 'README.md' is a file"),
    (["--workdir=/dev/null/x"], "cannot be made, because '/dev/null' is no folder"),
]
TABLE = f"--config={CONFIGS}/contsup/table1.py"
COMMANDS = {
    "train": [
        *OF_CONFIGS,
        (["--config.teacher.weights=x"], "has an effect only with a method of distillation"),
        (["--config.method=kd"], "teacher.weights is not set"),
        (["--config.method=kd", "--config.teacher.weights=nowhere"], "there is no such file or folder"),
        (["--config.network.weights=nowhere"], "there is no such file or folder"),
        (
            ["--config.method=kd", f"--config.teacher.weights={CONFIGS}", "--config.teacher.cache=/dev/null/x"],
            "teacher.cache '/dev/null/x' cannot be made, because '/dev/null' is no folder",
        ),
        (["--config.local.remat=blocks,decoder"], "only with the networks that it names: decoder with local.decoder"),
        (["--config.local.remat=contexts", "--config.local.context=R0"], "contexts with a local.context other than R0"),
        (["--config.local.remat=head", "--config.local.modules=1"], "head with local.modules above 1"),
        (["--config.local.boundaries=balanced", "--config.local.modules=1"], "only with local.modules above 1"),
        (["--config.local.context=R4E"], "the last of 4 modules has 3 before it: use R3E, or more modules"),
        (["--config.local.loss=contrast", "--config.loss.label_smoothing=0.1"], "only with local.loss=softmax"),
        (["--config.optimizer.warmup_epochs=31"], "warmup_epochs is 31, but the run has 30 epochs: use 0 "),
        (["--config.method=kd", "--config.kd.weight=0", "--config.kd.temperature=2"], "only with kd.weight above 0"),
        (["--config.method=kd", "--config.kd.ce_weight=0", "--config.loss.label_smoothing=0.1"], "labels above 0"),
        (["--config.method=dkd", "--config.dkd.warmup_epochs=31"], "dkd.warmup_epochs is 31, but the run has 30"),
        (
            ["--config.mesh.data=2", "--config.mesh.shard=optimizer", "--config.optimizer.momentum=0"],
            "only with an optimizer with state",
        ),
        (["--config.data.name=cifar10", "--config.data.data_dir=nowhere"], "no prepared cifar10 in nowhere"),
        (["--config.data.data_dir=nowhere"], "digits is part of the package"),
        (["--config.data.mean=77"], r"data.mean is '77': use a number in \[0, 1\]"),
        (["--config.loss.class_weights=1,0"], "loss.class_weights has 0.0 for class 1"),
        (["--config.mesh.data=3"], "a batch of 64 cannot be divided among 3 devices"),
        (["--config.data.train_examples=32"], "batch_size 64 for 32 examples"),
        (["--config.optimizer.schedule=piecewise"], "milestones are"),
        (["--config.optimizer.momentum=0", "--config.optimizer.nesterov"], "nesterov is True, but momentum is 0"),
        (["--config.optimizer.accumulate=4", "--config.steps=3"], "accumulate is 4 for 3 batches"),
        (["--config.local.boundaries=balance"], "unknown rule for boundaries"),
        (["--config.step=joined", "--config.local.memory_budget=8GiB"], "need separate executables"),
        (["--config.network.name=vgg8", "--config.network.shortcut=padding"], "is not for vgg8"),
        (["--processes=2"], "is set without --distributed"),
    ],
    "evaluate": [
        *((["--weights=README.md", *arguments], message) for arguments, message in OF_CONFIGS),
        ([], "--weights is not set"),
        (["--weights=nowhere"], "there is no such file or folder"),
        (["--weights=README.md", "--config.seed=1"], "this program does not use it"),
        (["--weights=README.md", "--config.steps_per_call=2"], "this program does not use it"),
        (["--weights=README.md", "--config.data.on_devices=true"], "this program does not use it"),
    ],
    "export": [
        ([], "--workdir is not set: give the folder of a run that has ended"),
        (["--workdir=docs"], "--output is not set: give a new folder"),
        (["--workdir=nowhere", "--output={folder}/out"], "workdir 'nowhere': there is no such file or folder"),
        (["--workdir=docs", "--output={folder}"], "output '.*' is not empty: give a new folder, or empty it"),
        (["--workdir=docs", "--output=README.md"], "output 'README.md' is a file: give a folder"),
        (["--workdir=docs", "--output={folder}/out", "--forms=onnx"], "unknown form 'onnx': use orbax, safetensors or"),
        (["--workdir=docs", "--otput=x"], "Unknown command line flag 'otput'. Did you mean: output"),
    ],
    "sweep": [
        *(
            ([TABLE, *arguments] if "=" not in arguments[0][:9] else arguments, message)
            for arguments, message in OF_CONFIGS
        ),
        ([TABLE, "--rows=99"], "--rows=99: use numbers of rows"),
        ([TABLE, "--config.seed=1", "--seeds=1,2"], "both set the seed"),
        ([TABLE, "--config.data.data_dir=nowhere"], "no prepared cifar10 in nowhere"),
        ([f"--config={CONFIGS}/blockkd/digits.py"], "teacher.weights is not set"),
    ],
    "memory": [
        *OF_CONFIGS,
        (["--contexts=R0E"], "unknown context 'R0E'"),
        (["--modules=0"], "--modules=0: use whole numbers"),
        (["--distillation=kd"], "no teacher for kd"),
        (["--target=tpu"], "unknown target 'tpu'"),
        (["--devices=3"], "cannot be divided among 3 devices"),
    ],
    "speed": [
        *OF_CONFIGS,
        (["--methods=kdd"], "unknown method 'kdd'"),
        (["--methods=kd"], "no teacher for kd"),
        (["--forms=fast"], "unknown form 'fast'"),
        (["--target=gpu:h100"], "the compiler of GPUs does not count operations"),
        (["--profile=/dev/null/x"], "profile '/dev/null/x' cannot be made, because '/dev/null' is no folder"),
        (["--config.step=joined"], "step is joined, which the rows would ignore"),
    ],
    "pipeline": [
        (["--config.steps_per_call=2"], "this program does not use it; each step is timed alone"),
        *OF_CONFIGS,
        (["--module=2,x"], "--module=2,x: use whole numbers"),
        (["--data=3"], "cannot be divided over 3 devices"),
        (["--target=tpu"], "unknown target 'tpu'"),
    ],
    "input_bench": [
        (["--workers=two"], "--workers=two: use whole numbers"),
        (["--imags=3"], "Unknown command line flag"),
    ],
}
NOT_IMPORTED = f"""
assert not sys.modules.keys() & {set(SLOW)}, sorted(sys.modules.keys() & {set(SLOW)})
sys.modules.update(dict.fromkeys({SLOW}))  # to import one of them is now an error
"""


@pytest.mark.parametrize("program", COMMANDS)
def test_a_mistake_is_refused_before_jax_is_imported(program: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    commands = [
        ([argument.format(folder=tmp_path) for argument in arguments], message)
        for arguments, message in COMMANDS[program]
    ]
    refused(program, commands, NOT_IMPORTED)


@pytest.mark.parametrize("program", [*COMMANDS, "notebooks"])
def test_help_and_a_refusal_take_less_than_a_second(program: str) -> None:
    for arguments, status in ((["--help"], 0), (["nowhere"], 2)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command(program, *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
        assert "usage" in done.stdout or program in done.stdout or done.stderr.startswith("error: ")
        # Of the processor, because other programs run on this machine too.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_no_config_file_imports_jax() -> None:
    code = f"""
import sys
from pathlib import Path
from experiments.configs.config_file import read_config
for path in Path({CONFIGS!r}).glob("*/*.py"):
    if "def get_config(" in path.read_text():
        read_config(str(path))
assert not sys.modules.keys() & {set(SLOW)}
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
