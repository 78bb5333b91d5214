"""Files that cannot be read for a moment: the training program ends with the file's name, and nothing is changed."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.configs.default import get_config
from experiments.folders.workdirs import CONFIG, FACTS, claim
from experiments.train import __main__ as program
from tests.support.checkpoints import files_of

BAD_READS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES)


def ends(arguments: list[str]) -> int:
    """The status of the training program, which ends before it trains."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as stopped:
            program.main(program.parse(["train", *arguments]))
    return int(stopped.value.code or 0)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes reading a file fail."""
    usual = Path.open

    def fail(name: Path, number: int) -> None:
        def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path == name:
                raise OSError(number, os.strerror(number), str(path))
            return usual(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", opened)

    return fail


@pytest.mark.parametrize("number", BAD_READS, ids=str)
def test_a_teacher_that_cannot_be_read(teacher_run, tmp_path, unreadable, capsys, number):
    workdir, name = tmp_path / "run", teacher_run / "network.npz"
    unreadable(name, number)
    assert ends(["--config.method=kd", f"--config.teacher.weights={teacher_run}", f"--workdir={workdir}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and str(name) in err and os.strerror(number) in err and err.count("\n") == 1, err
    assert not workdir.exists()


@pytest.mark.parametrize("number", BAD_READS, ids=str)
@pytest.mark.parametrize("name", [CONFIG, FACTS])
def test_a_record_of_a_folder_that_cannot_be_read(tmp_path, unreadable, number, name):
    config, facts = get_config(), {"images": {"train": 3}}
    claim(tmp_path, config, facts)
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    unreadable(tmp_path / name, number)
    with pytest.raises(ValueError, match=rf"{tmp_path / name}: {os.strerror(number)}; repair that, or"):
        claim(tmp_path, config, facts)
    unreadable(Path("/nowhere"), number)
    assert before == {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
