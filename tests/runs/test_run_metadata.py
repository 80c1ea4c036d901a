"""What a run keeps of its data: whole, in any script, and compared."""

import dataclasses

import numpy as np
import pytest
from directories import write_pictures
from limits import no_file_grows_beyond

from alexnet_jax.data import records, statistics
from alexnet_jax.runs import run_files
from alexnet_jax.runtime import errors

CLASSES = ["großer Panda", "熊猫", 'a "b"\\']


def write(directory, class_names=CLASSES, seed=0):
  images = np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 3), np.uint8)
  return write_pictures(directory, class_names, train=images)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write(tmp_path_factory.mktemp("run_files") / "data")


def keep(workdir, directory):
  run_files.check_run_metadata(
    workdir, records.open_directory(directory), statistics.read(directory)
  )


def snapshot(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_keeps_its_classes_and_statistics(tmp_path, data):
  keep(tmp_path, data)
  class_names, known = run_files.read_run_metadata(tmp_path)
  assert class_names == tuple(CLASSES)
  stats = statistics.read(data)
  for name in ("mean_image", "colour_axes", "colour_sds"):
    found, wanted = getattr(known, name), getattr(stats, name)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype
  keep(tmp_path, data)  # As a run that goes on does.


def test_what_a_run_keeps_is_whole_or_written_anew(tmp_path, data):
  """A disk that fills up in any file of it."""
  dataset, stats = records.open_directory(data), statistics.read(data)
  # Longer than the mean image, which comes first.
  names = tuple(name * 2000 for name in CLASSES)
  dataset = dataclasses.replace(dataset, class_names=names)
  (tmp_path / "whole").mkdir()
  run_files.check_run_metadata(tmp_path / "whole", dataset, stats)
  expected = snapshot(tmp_path / "whole")
  for room in {0, 1} | {len(content) - 1 for content in expected.values()}:
    workdir = tmp_path / str(room)
    workdir.mkdir()
    with no_file_grows_beyond(room), pytest.raises(OSError, match="too large"):
      run_files.check_run_metadata(workdir, dataset, stats)
    run_files.check_run_metadata(workdir, dataset, stats)
    assert snapshot(workdir) == expected


@pytest.mark.parametrize("what", ["order of classes", "mean image"])
def test_other_data_than_the_run_began_with_are_refused(tmp_path, data, what):
  """Labels would mean other classes, or the input lie elsewhere."""
  (tmp_path / "run").mkdir()
  keep(tmp_path / "run", data)
  before = snapshot(tmp_path / "run")
  other = tmp_path / "other"
  write(other, CLASSES[::-1]) if "classes" in what else write(other, seed=1)
  with pytest.raises(errors.InputError) as error:
    keep(tmp_path / "run", other)
  assert "\n" not in str(error.value)
  for word in (what.split()[-1], str(other), str(tmp_path / "run")):
    assert word in str(error.value)
  assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("content", [None, b"{", b"3"])
@pytest.mark.parametrize("name", ["class_names.json", "colour_pca.json"])
def test_a_run_that_lost_what_it_kept_is_refused(tmp_path, data, name, content):
  keep(tmp_path, data)
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.InputError) as error:
    run_files.read_run_metadata(tmp_path)
  assert str(tmp_path) in str(error.value)
  assert "\n" not in str(error.value)
