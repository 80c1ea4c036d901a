"""Features of a split as a file, and which are near to one another."""

import tracemalloc

import limits
import numpy as np
import pytest
from commands import assert_refused, run_in_process
from drawn_runs import write_run_on_shapes

import alexnet_jax
from alexnet_jax.data import batches, records
from alexnet_jax.runs import trained
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import features


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run on shapes of 32 px."""
  place = tmp_path_factory.mktemp("place")
  return write_run_on_shapes(place, 28, train=600, validation=10, test=70)


def run(capsys, place, *words):
  return run_in_process(
    capsys, "features", f"--workdir={place / 'run'}", *words
  )


def test_file_holds_features_and_labels_in_the_order_of_the_split(
  place, capsys
):
  file = place / "test.npz"
  result = run(capsys, place, "--layer=fc6", f"--output={file}")
  assert result.returncode == 0, result.stderr
  assert "fc6, 32, of 70 images" in result.stdout
  dataset = records.open_directory(place / "data")
  examples = records.open_split(dataset, "test", "split")
  batch = batches.load(examples, np.arange(70), 32)
  expected = alexnet_jax.load(place / "run").features(batch["image"], "fc6")
  with np.load(file, allow_pickle=False) as held:
    np.testing.assert_allclose(held["features"], expected, rtol=1e-5)
    np.testing.assert_array_equal(held["labels"], batch["label"])
    assert tuple(held["class_names"]) == dataset.class_names
    assert held["layer"] == "fc6"
  assert expected.std(axis=0).max() > 0.1


def test_one_batch_is_in_memory_and_a_full_disk_is_reported(
  place, tmp_path, monkeypatch
):
  # The reader keeps several batches of images, so the test has its own.
  batch = {"image": np.zeros((10, 32, 32, 3), np.uint8), "label": np.zeros(10)}
  monkeypatch.setattr(batches, "all_once", lambda *_: [batch] * 60)
  model = alexnet_jax.load(place / "run")
  examples = trained.examples_of(model.config, "", "train")
  file = tmp_path / "features.npz"
  features.write(file, model, examples, "conv1")  # What compiling takes.
  with np.load(file) as held:  # Maps keep their shape.
    assert held["features"].shape == (600, *model.shapes["conv1"])
  tracemalloc.start()
  features.write(file, model, examples, "conv1")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < file.stat().st_size / 2
  with (
    limits.no_file_grows_beyond(100_000),
    pytest.raises(errors.InputError, match="cannot be written"),
    cli.replacing(file) as new,
  ):
    features.write(new, model, examples, "conv1")
  assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
  ("name", "words", "said"),
  [
    ("x.txt", [], ["must end in .npz"]),
    ("x.npz", ["--layer=fc7"], ["layer='fc7'", "fc6"]),
    ("x.npz", ["--split=none"], ["--split", "none"]),
    ("no/x.npz", ["--layer=fc6"], ["cannot be written"]),
  ],
)
def test_bad_command_is_refused(name, words, said, place, capsys):
  result = run(capsys, place, f"--output={place / name}", *words)
  assert_refused(result, *said)
  assert not (place / name).exists()


def test_nearest_are_those_of_least_distance():
  rng = np.random.default_rng(0)
  held = rng.normal(size=(500, 20)).astype(np.float32)
  held[137] = held[42] + 1e-3  # Known.
  queries = held[[42, 7]]
  found = features.nearest(held, queries, 5)
  for query, near in zip(queries, found, strict=True):
    distances = [float(np.sqrt(((x - query) ** 2).sum())) for x in held]
    assert near.tolist() == sorted(range(500), key=distances.__getitem__)[:5]
  assert found[0][:2].tolist() == [42, 137]
  assert features.nearest(held[:3], queries, 5).shape == (2, 3)
