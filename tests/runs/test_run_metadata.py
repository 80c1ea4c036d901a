"""What a run keeps of its data, in any script."""

import numpy as np
import pytest
from directories import write_pictures

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
  names = records.open_directory(directory).class_names
  run_files.write_run_metadata(workdir, names, statistics.read(directory, 8))


def test_a_run_keeps_its_classes_and_statistics(tmp_path, data):
  keep(tmp_path, data)
  class_names, known = run_files.read_run_metadata(tmp_path, 8)
  assert class_names == tuple(CLASSES)
  stats = statistics.read(data, 8)
  for name in ("mean_image", "colour_axes", "colour_sds"):
    found, wanted = getattr(known, name), getattr(stats, name)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype


@pytest.mark.parametrize("content", [None, b"{", b"3"])
@pytest.mark.parametrize("name", ["class_names.json", "colour_pca.json"])
def test_a_run_that_lost_what_it_kept_is_refused(tmp_path, data, name, content):
  keep(tmp_path, data)
  (tmp_path / name).unlink()
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.InputError) as error:
    run_files.read_run_metadata(tmp_path, 8)
  assert str(tmp_path) in str(error.value)
  assert "\n" not in str(error.value)
