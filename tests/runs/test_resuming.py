"""What a run knows of itself, and what it compares when it is resumed.

One short run is trained; the tests copy it, change a thing, and start it with a
stop that is already asked for.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess

import jax
import pytest
from tiny_runs import QUICK, ROOT

from alexnet_jax.configs import quickstart
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.train import train_and_evaluate

pytestmark = pytest.mark.slow  # It compiles a step.
INSIDE = "progress/metadata"
FIELDS = {
  **QUICK,
  "network.layers": ("conv1", "fc6", "fc8"),
  "total_steps": 4,
  "checkpoint_every_steps": 2,
  "evaluate_every_epochs": 9.0,
  "test_split": "",
}


def start(workdir, data, stopped=True, accept_data=False, **fields):
  config = quickstart.get_config()
  fields = {**FIELDS, "data_dir": str(data), **fields}
  config.update_from_flattened_dict(fields)
  train_and_evaluate(config, workdir, lambda: stopped, accept_data)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, quick_compilation):
  workdir = tmp_path_factory.mktemp("runs") / "run"
  start(workdir, data, stopped=False)
  return workdir


@pytest.fixture
def workdir(run, tmp_path):
  return shutil.copytree(run, tmp_path / "run")


def about(workdir, step=None):
  """Of the start of a run, or of a checkpoint."""
  name = "about.json" if step is None else f"checkpoints/{step}/{INSIDE}"
  return json.loads((workdir / name).read_text())


def replace_inside(workdir, step, new):
  """Replaces what a checkpoint says, with digests that agree."""
  folder = workdir / f"checkpoints/{step}"
  (folder / INSIDE).write_text(json.dumps(new))
  command = "sha256sum $(cut -c67- SHA256SUMS) > new; mv new SHA256SUMS"
  subprocess.run(command, shell=True, cwd=folder, check=True)


def test_checkpoint_and_workdir_say_what_made_them(run, data):
  config = json.loads((run / "config.json").read_text())
  packages = ("jax", "jaxlib", "numpy", "alexnet-jax")
  expected = {
    "platform": "cpu",
    "device_kind": jax.devices()[0].device_kind,
    "device_count": 8,
    "cpu_count": len(os.sched_getaffinity(0)),
    **{name: importlib.metadata.version(name) for name in packages},
  }
  head = ["git", "rev-parse", "HEAD"]
  head = subprocess.run(head, cwd=ROOT, capture_output=True, text=True)
  for found, step in ((about(run), 0), (about(run, 2), 2)):
    assert found["step"] == step
    assert found["config"] == config
    assert found["environment"].items() >= expected.items()
    # The tests also run where there is no checkout.
    assert (found["commit"] or "")[:40] == head.stdout.strip()
    assert found["accepted_data"] == []
  lines = (run / "metrics.jsonl").read_text().splitlines()
  early = [line for line in lines if json.loads(line)["step"] <= 2]
  assert about(run, 2)["records"] == len(early) > 0
  files = {path.name for path in data.glob("*-train.*")}
  assert files <= set(about(run)["fingerprint"])


@pytest.mark.parametrize("name", ["3", "1000"])
def test_folder_of_another_step_is_moved_aside(name, workdir, data, capsys):
  shutil.copytree(workdir / "checkpoints/2", workdir / "checkpoints" / name)
  shutil.rmtree(workdir / "checkpoints/4")
  start(workdir, data)
  said = capsys.readouterr()
  (line,) = said.err.splitlines()
  assert f"step {name} is damaged" in line
  assert "its progress is that of step 2" in line
  assert "resuming from step 2 of 4" in said.out
  assert checkpoint.steps_of(workdir) == [2]
  assert (workdir / f"checkpoints/{name}.damaged-1").is_dir()


def test_config_that_was_removed_binds_the_run(workdir, data, capsys):
  file, names = workdir / "config.json", workdir / "class_names.json"
  before, names_before = file.read_bytes(), names.read_bytes()
  file.unlink()
  names.unlink()
  with pytest.raises(InputError, match=r"learning_rate \(0\.003 there, 0\.5 h"):
    start(workdir, data, learning_rate=0.5)
  assert not file.exists()
  start(workdir, data, stopped=False)
  assert file.read_bytes() == before
  assert names.read_bytes() == names_before
  assert "is finished" in capsys.readouterr().out


def test_config_that_was_replaced_is_refused(workdir, data):
  """Its file says what the command says, but the checkpoint does not."""
  text = (workdir / "config.json").read_text()
  assert '"seed": 0' in text
  (workdir / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
  with pytest.raises(InputError, match=r"seed \(0 there, 1 here\)"):
    start(workdir, data, seed=1)


def test_older_checkpoint_can_be_used_but_not_resumed(workdir, data):
  """As versions wrote it that knew nothing of the run but its progress."""
  replace_inside(workdir, 4, about(workdir, 4)["progress"])
  step, params = checkpoint.load_params(workdir, "4")
  assert step == 4
  found = checkpoint.digest(params)
  assert found == checkpoint.digest(checkpoint.read_params(workdir, 4))
  with pytest.raises(InputError, match=r"cannot resume .*version.*init_from="):
    start(workdir, data)


def test_other_cpus_and_versions_are_told_of(workdir, data, capsys):
  shutil.rmtree(workdir / "checkpoints/4")
  cpus = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(cpus)})
  try:
    start(workdir, data)
  finally:
    os.sched_setaffinity(0, cpus)
  count = len(cpus)
  said = [x for x in capsys.readouterr().out.splitlines() if "to the bit" in x]
  if count > 1:
    assert f"cpu_count ({count} before, 1 now)" in said[0]
  assert len(said) == (count > 1)
  start(workdir, data)
  assert "to the bit" not in capsys.readouterr().out

  inside = about(workdir, 2)
  assert inside["environment"]["jax"] == jax.__version__
  inside["environment"]["jax"] = "0.1"
  replace_inside(workdir, 2, inside)
  start(workdir, data)
  said = capsys.readouterr().out
  assert f"jax (0.1 before, {jax.__version__} now)" in said
  assert "cpu_count" not in said


def test_data_that_were_accepted_are_listed_and_are_the_runs(
  workdir, data, tmp_path, capsys
):
  """They are accepted once; about.json says so from then on."""
  mixed = shutil.copytree(data, tmp_path / "mixed")
  other = tmp_path / "other" / data.name
  shapes.generate(other, size_px=32, seed=1, workers=0, train=160)
  name = sorted(path.name for path in mixed.glob("*-train.*"))[0]
  shutil.copy(other / name, mixed / name)
  with pytest.raises(InputError, match="--accept_data"):
    start(workdir, mixed)
  start(workdir, mixed, accept_data=True)
  expected = [{"step": 4, "changed": [name]}]
  assert about(workdir)["accepted_data"] == expected
  shutil.rmtree(workdir / "checkpoints/4")
  start(workdir, mixed, stopped=False, accept_data=True)
  expected = [{"step": 2, "changed": [name]}]
  assert about(workdir, 4)["accepted_data"] == expected
  capsys.readouterr()
  start(workdir, mixed)
  assert about(workdir)["accepted_data"] == expected
