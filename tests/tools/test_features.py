"""Features of a split, what is near in them, and what a line can tell."""

import tracemalloc

import limits
import numpy as np
import pytest
from array_record.python import array_record_module
from commands import assert_refused, run_command
from drawn_runs import write_run_on_shapes
from scipy import optimize, special
from tensorflow_datasets.proto import tf_example_pb2

import alexnet_jax
from alexnet_jax.data import batches, records
from alexnet_jax.runs import opened
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import features, probe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run on shapes of 32 px."""
  place = tmp_path_factory.mktemp("place")
  return write_run_on_shapes(place, 28, train=600, validation=10, test=70)


def write(place, name, *words):
  return run_command(
    "features", f"--workdir={place / 'run'}", f"--output={place / name}", *words
  )


def test_file_holds_features_and_labels_in_the_order_of_the_split(place):
  result = write(place, "test.npz", "--layer=fc6")
  assert result.returncode == 0, result.stderr
  assert "fc6, 32, of 70 images" in result.stdout
  dataset = records.open_directory(place / "data")
  examples = records.open_split(dataset, "test", "split")
  batch = batches.load(examples, np.arange(70), 32)
  expected = alexnet_jax.load(place / "run").features(batch["image"], "fc6")
  with np.load(place / "test.npz", allow_pickle=False) as held:
    np.testing.assert_allclose(held["features"], expected, rtol=1e-5)
    np.testing.assert_array_equal(held["labels"], batch["label"])
    assert tuple(held["class_names"]) == dataset.class_names
    assert held["layer"] == "fc6"
  assert expected.std(axis=0).max() > 0.1


def test_array_record_holds_the_same(place):
  for name in ("maps.npz", "maps.array_record"):
    result = write(place, name, "--layer=pool1", "--split=train[:20]")
    assert result.returncode == 0, result.stderr
  reader = array_record_module.ArrayRecordReader(
    str(place / "maps.array_record")
  )
  with np.load(place / "maps.npz") as held:
    assert reader.num_records() == len(held["labels"]) == 20
    for index in range(20):
      record = reader.read([index])[0]
      example = tf_example_pb2.Example.FromString(record).features.feature
      values = np.array(example["features"].float_list.value, np.float32)
      shape = example["shape"].int64_list.value
      np.testing.assert_array_equal(
        values.reshape(shape), held["features"][index]
      )
      assert example["label"].int64_list.value == [held["labels"][index]]


@pytest.mark.parametrize("suffix", ["npz", "array_record"])
def test_a_batch_of_features_is_in_memory_and_a_full_disk_is_told(
  suffix, place, tmp_path, monkeypatch
):
  monkeypatch.setattr(features, "_BATCH", 8)
  model = alexnet_jax.load(place / "run")
  examples = opened.examples_of(model.config, "", "train")
  file = tmp_path / f"features.{suffix}"
  features.write(file, model, examples, "conv1")  # What compiling takes.
  file.unlink()
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
    ("x.txt", [], [".npz or .array_record"]),
    ("x.npz", ["--layer=fc7"], ["layer='fc7'", "fc6"]),
    ("x.npz", ["--split=none"], ["--split", "none"]),
    ("no/x.npz", ["--split=test[:1]", "--layer=fc6"], ["cannot be written"]),
    ("no/x.array_record", ["--layer=fc6"], ["cannot be written"]),
  ],
)
def test_bad_command_is_refused(name, words, said, place):
  assert_refused(write(place, name, *words), *said)
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


def planted(count, seed):
  """Three classes, told apart by a line in two of eight numbers."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(count, 8))
  scores = np.stack([values[:, 0], values[:, 1], -values[:, 0]], axis=1)
  noisy = scores + 0.7 * rng.gumbel(size=scores.shape)
  return values.astype(np.float32), noisy.argmax(axis=1)


def test_fit_is_at_the_least_of_the_penalized_loss():
  """Against scipy, in float64."""
  values, labels = planted(400, 0)

  def loss(flat):
    weights, biases = flat[:24].reshape(8, 3), flat[24:]
    logs = special.log_softmax(values @ weights + biases, axis=1)
    return -logs[np.arange(400), labels].mean() + 0.005 * (weights**2).sum()

  best = optimize.minimize(loss, np.zeros(27), tol=1e-12)
  weights, biases = probe.fit(values, labels, 3, 0.01)
  found = np.concatenate([weights.ravel(), biases]).astype(np.float64)
  assert loss(found) == pytest.approx(best.fun, abs=1e-6)
  np.testing.assert_allclose(weights.ravel(), best.x[:24], atol=5e-3)


def test_probe_tells_what_a_line_can(tmp_path):
  """The error of the planted rule itself, and not where there is none."""
  files = []
  for name, seed, count in (("train", 1, 3000), ("test", 2, 2000)):
    values, labels = planted(count, seed)
    if name == "test":
      scores = np.stack([values[:, 0], values[:, 1], -values[:, 0]], axis=1)
      rule = (scores.argmax(axis=1) != labels).mean()
    files.append(tmp_path / f"{name}.npz")
    np.savez(
      files[-1], features=7 + 100 * values, labels=labels,
      class_names=np.array(["a", "b", "c"]), layer="fc7",
    )  # fmt: skip
  result = run_command("probe", *map(str, files))
  assert result.returncode == 0, result.stderr
  (share,) = [word for word in result.stdout.split() if word.endswith("%")]
  assert float(share[:-1]) / 100 == pytest.approx(rule, abs=0.02)
  held = [probe.read(file) for file in files]
  luck = np.random.default_rng(3).permutation(held[0].labels)
  _, error = probe.error(held[0]._replace(labels=luck), held[1])
  assert error > rule + 0.2


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"layer": "fc6"}, "another layer"),
    ({"class_names": np.array(["a", "b", "d"])}, "another class_names"),
    ({"features": np.zeros((4, 9))}, "8 numbers|9"),
    ({"labels": np.array([0, 1, 2])}, "4 features of 3 labels"),
    ({"labels": np.array([0, 1, 2, 3])}, "label is not of the 3 classes"),
    ({"features": np.full((4, 8), np.nan)}, "not finite"),
  ],
)
def test_files_that_do_not_fit_are_refused(change, words, tmp_path):
  values, labels = planted(20, 0)
  about = {"class_names": np.array(["a", "b", "c"]), "layer": "fc7"}
  np.savez(tmp_path / "a.npz", features=values, labels=labels, **about)
  other = {"features": values[:4], "labels": labels[:4], **about, **change}
  np.savez(tmp_path / "b.npz", **other)
  result = run_command("probe", f"{tmp_path}/a.npz", f"{tmp_path}/b.npz")
  assert_refused(result, *words.split("|"))


def test_half_a_file_is_refused(tmp_path):
  (tmp_path / "a.npz").write_bytes(b"PK\3\4half")
  result = run_command("probe", f"{tmp_path}/a.npz", f"{tmp_path}/a.npz")
  assert_refused(result, "a.npz", "holds no features", "alexnet features")
