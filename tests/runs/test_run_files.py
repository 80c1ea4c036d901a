"""The folder of a run: who may write there, and whose run it is."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest

from alexnet_jax import networks
from alexnet_jax.configs import quickstart
from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime.errors import InputError


def claim(workdir, **fields):
  config = quickstart.get_config()
  config.update(fields)
  with run_files.claim_workdir(workdir, config, 9):
    pass


def test_lock_is_held_by_a_living_program_alone(tmp_path):
  claim(tmp_path)
  code = "import fcntl, sys, time\nlock = open(sys.argv[1], 'w')\n"
  code += "fcntl.flock(lock, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(99)"
  other = subprocess.Popen(
    [sys.executable, "-c", code, tmp_path / ".lock"], stdout=subprocess.PIPE
  )
  with other:
    other.stdout.readline()
    with pytest.raises(InputError, match="in use by another program"):
      claim(tmp_path)
    other.kill()
  claim(tmp_path)


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EIO"])
def test_file_system_without_locks_is_told_of(
  code, tmp_path, monkeypatch, capsys
):
  """As flock fails on some NFS, which no test has at hand."""

  def flock(*_):
    raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

  monkeypatch.setattr(fcntl, "flock", flock)
  if code == "EIO":
    with pytest.raises(OSError, match="Input/output"):
      claim(tmp_path)
    return
  claim(tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert f"{str(tmp_path)!r} cannot be locked" in line
  assert (tmp_path / "config.json").exists()


def test_claim_is_of_a_folder_and_not_of_its_name(tmp_path):
  workdir, config = tmp_path / "run", quickstart.get_config()
  with run_files.claim_workdir(workdir, config, 9) as (_, first):
    assert first()
    moved = workdir.rename(tmp_path / "moved")
    assert not first()
    with run_files.claim_workdir(workdir, config, 9) as (_, second):
      assert second()
      assert not first()
      shutil.rmtree(workdir)
      assert not second()
    moved.rename(workdir)
    assert first()


def test_path_that_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
  """Orbax would fail at each save, and when it reads."""
  for workdir in (tmp_path / "run\udcff", tmp_path / "\udcff/run"):
    with pytest.raises(InputError, match="UTF-8"):
      claim(workdir)
    with pytest.raises(InputError, match="UTF-8"):
      checkpoint.find_step(workdir, "newest")
  assert list(tmp_path.iterdir()) == []


def test_run_of_another_config_is_refused_but_for_what_may_change(tmp_path):
  claim(tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(InputError, match=r"learning_rate \(0\.01 there, 0\.5 h"):
    claim(tmp_path, learning_rate=0.5)
  assert (tmp_path / "config.json").read_bytes() == before
  claim(tmp_path, log_every_steps=7)
  assert run_files.read_config(tmp_path).log_every_steps == 7


def test_run_that_is_older_than_a_field_is_read_and_resumed(tmp_path):
  """With the value by which the code did what it did without the field."""
  claim(tmp_path)
  file = tmp_path / "config.json"
  saved = json.loads(file.read_text())
  for fields in (saved, saved["network"]):
    for name in ("momentum", "mean_crop", "dropout_rate_of_layers"):
      fields.pop(name, None)
  file.write_text(json.dumps(saved))
  config = run_files.read_config(tmp_path)
  assert config.momentum == 0.9
  assert config.mean_crop == "own place"
  networks.make_model(config)
  claim(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_config_is_refused(text, tmp_path):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError, match=r"holds no run \(config\.json: "):
    run_files.read_config(tmp_path)
  with pytest.raises(InputError, match=str(tmp_path)):
    claim(tmp_path)
