"""Images into a prepared directory, end to end, read back by TFDS and Pillow.

Real commands are killed here. Layouts are in test_sources.py, kinds of images
in test_decode.py.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import drawn_runs
import numpy as np
import oracles
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from commands import assert_refused, run_command
from limits import no_file_grows_beyond
from PIL import Image

from alexnet_jax.data import statistics
from alexnet_jax.data.prepare import prepare, shards
from alexnet_jax.runtime import errors
from alexnet_jax.tools.evaluate import evaluate_runs

SIZE_PX = 16


def colour(*digits):
  """A colour that names an image, JPEG noise notwithstanding; digits < 12."""
  return tuple(10 + 20 * digit for digit in digits)


def digits(image):
  return tuple(int(value // 20) for value in image.mean((0, 1)))


def decode(jpeg):
  with Image.open(io.BytesIO(jpeg)) as image:
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, **options)
  return path


def add(folder, names, *counts, split=0):
  """Adds images to each class: (split, class, index) is in their colour."""
  for label, (class_name, count) in enumerate(zip(names, counts, strict=True)):
    for index in range(count):
      image = Image.new("RGB", (24, 20), colour(split, label, index))
      save(folder / class_name / f"{index}.png", image)
  return folder


def noise(seed, *shape):
  values = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
  return Image.fromarray(values)


def add_noise(folder, count, size_px=SIZE_PX, seed=0):
  """Adds `count` images to each of classes a and b; enough for many shards."""
  for label, class_name in enumerate("ab"):
    for index in range(count):
      image = noise([seed, label, index], size_px, size_px)
      save(folder / class_name / f"{index:03}.bmp", image)
  return folder


def build(source, output, **options):
  options = {"size_px": SIZE_PX, "workers": 0} | options
  return prepare.prepare(str(source), output, **options)


def read(directory, split, **options):
  builder = tfds.builder_from_directory(directory)
  return builder.as_data_source(split, **options)


def stored(directory, split):
  """(JPEG, label) of each example, as TFDS reads them."""
  decoders = {"image": tfds.decode.SkipDecoding()}
  source = read(directory, split, decoders=decoders)
  return [(example["image"], int(example["label"])) for example in source]


def found(directory, split):
  """{(split, class, index)} of a split, after a look at the labels."""
  pairs = [(digits(decode(jpeg)), y) for jpeg, y in stored(directory, split)]
  assert all(name[1] == label for name, label in pairs)
  assert len(dict(pairs)) == len(pairs)
  return set(dict(pairs))


def class_names(directory):
  return tfds.builder_from_directory(directory).info.features["label"].names


def hashes(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in directory.rglob("*")
    if not path.is_dir()
  }


def shard_files(directory):
  return sorted(directory.glob("*.array_record-*"))


def identities(directory):
  """What a file that was written again cannot keep."""
  return {
    path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
    for path in shard_files(directory)
  }


def unfinished(output):
  return output.parent / f".{output.name}.unfinished"


@pytest.fixture(scope="module", name="small")
def fixture_small(tmp_path_factory):
  folder = tmp_path_factory.mktemp("small") / "in"
  return add(folder / "train", ["a", "b"], 10, 10).parent


# What is written.


def test_images_get_their_splits_labels_and_class_names(tmp_path):
  names = ["Mole", "ant", "zebra"]
  for split, folder in enumerate(["Train", "val", "testing"]):
    counts = (5 - split, 3, 1 + split)
    add(tmp_path / "in" / folder, names, *counts, split=split)
  counts, _, _ = build(tmp_path / "in", tmp_path / "out")
  assert counts == {"train": 9, "validation": 9, "test": 9}
  assert class_names(tmp_path / "out") == names
  for split, name in enumerate(["train", "validation", "test"]):
    assert found(tmp_path / "out", name) == {
      (split, label, index)
      for label, count in enumerate((5 - split, 3, 1 + split))
      for index in range(count)
    }


def test_a_jpeg_of_the_right_size_is_kept_byte_for_byte(tmp_path):
  """Encoded again it would lose; as raw pixels it cannot be kept."""
  for name in "ab":
    path = tmp_path / "in" / "train" / name / "0.jpg"
    save(path, noise(ord(name), 16, 16), quality=40, subsampling=2)
  given = {path.read_bytes() for path in (tmp_path / "in").rglob("*.jpg")}
  build(tmp_path / "in", tmp_path / "out")
  assert {jpeg for jpeg, _ in stored(tmp_path / "out", "train")} == given
  build(tmp_path / "in", tmp_path / "raw", raw=True)
  pixels = {decode(jpeg).tobytes() for jpeg in given}
  examples = read(tmp_path / "raw", "train")
  assert {example["image"].tobytes() for example in examples} == pixels


def test_statistics_are_those_of_the_training_pixels(tmp_path):
  """Not of the other splits; over several shards, before JPEG."""
  rng = np.random.default_rng(0)
  train = []
  for split, count, top in [("train", 40, 90), ("val", 3, 256)]:
    for name in "ab":
      for index in range(count):
        pixels = rng.integers(0, top, (16, 16, 3)) * [1.0, 0.7, 0.4]
        pixels[..., 1] += pixels[..., 0] / 3
        image = Image.fromarray(pixels.astype(np.uint8))
        save(tmp_path / "in" / split / name / f"{index}.png", image)
        train += [np.asarray(image)] if split == "train" else []
  build(tmp_path / "in", tmp_path / "out")
  assert len(list((tmp_path / "out").glob("*-train.*"))) > 1
  mean, sds, axes = oracles.mean_and_pca(train)
  stored_mean = np.load(tmp_path / "out" / "mean_image.npy")
  assert stored_mean.dtype == np.float32
  np.testing.assert_allclose(stored_mean, mean, rtol=0, atol=1e-4)
  pca = json.loads((tmp_path / "out" / "colour_pca.json").read_text())
  np.testing.assert_allclose(pca["standard_deviations"], sds, rtol=1e-5)
  # The sign of an axis is arbitrary.
  dots = np.array(pca["axes_in_columns"]).T @ axes
  np.testing.assert_allclose(np.abs(dots), np.eye(3), rtol=0, atol=1e-4)


def test_shards_mix_the_classes_under_any_name(tmp_path, small):
  """In order of class, train[:50%] would hold one class alone."""
  build(small, tmp_path / "Bilder ä-1")
  (tmp_path / "Bilder ä-1").rename(tmp_path / "new")
  assert len(found(tmp_path / "new", "train")) == 20
  for half in ["train[:50%]", "train[50%:]"]:
    labels = [label for _, label in stored(tmp_path / "new", half)]
    assert 2 <= sum(labels) <= 8


def test_bytes_depend_neither_on_workers_nor_on_the_run(tmp_path):
  """Protobuf orders the keys of a map by chance, anew in each process."""
  add_noise(tmp_path / "in", 60)
  outputs = [tmp_path / run / "out" for run in "ab"]
  for workers, output in zip([0, 2], outputs, strict=True):
    build(tmp_path / "in", output, workers=workers)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
  first, *others = map(hashes, outputs)
  assert len([name for name in first if "-train." in name]) == 3
  assert others == [first]
  # Two processes may agree by chance; sorted keys are no chance.
  (file,) = outputs[0].glob("*-test.array_record-*")
  for record in array_record_module.ArrayRecordReader(str(file)).read_all():
    assert record.index(b"\x05image") < record.index(b"\x05label")


def test_a_test_split_alone_is_evaluated_as_within_a_data_set(tmp_path):
  """It has no mean image; the run has its own."""
  add(tmp_path / "in" / "train", ["a", "b"], 2, 2)
  add_noise(tmp_path / "in" / "test", 9)
  fields = {
    "network.layers": ("conv1", "fc8"),
    "network.conv1.kernel": 5,
    "image_size_px": SIZE_PX,
    "crop_size_px": 15,
    "num_classes": 2,
  }
  config = drawn_runs.small_config(**fields)
  drawn_runs.write_run(tmp_path / "run", config, ("a", "b"))
  figures = []
  for wanted in ("train,test", "test"):
    output = tmp_path / wanted
    build(tmp_path / "in", output, splits=wanted)
    _, examples, found = evaluate_runs([tmp_path / "run"], data_dir=str(output))
    assert len(examples) == 18
    del found["images_per_second"]
    figures.append(found)
  assert figures[0] == figures[1]
  assert not [f for f in statistics.FILES if (output / f).exists()]


# Images that cannot be read.


def add_with_bad(folder):
  """100 images for several shards, of which 4 are bad; returns their names."""
  add_noise(folder / "train", 50)
  add_noise(folder / "test", 2, seed=1)
  png = save(folder.parent / "0.png", noise(0, 40, 40)).read_bytes()
  right_size = io.BytesIO()
  noise(1, SIZE_PX, SIZE_PX).save(right_size, "JPEG")
  bad = {
    folder / "train" / "a" / "truncated.png": png[: len(png) // 2],
    folder / "train" / "b" / "kept_as_it_is.jpg": right_size.getvalue()[:-40],
    folder / "train" / "b" / "zero.png": b"",
    folder / "test" / "a" / "text.jpg": b"This is no image.",
  }
  for path, data in bad.items():
    path.write_bytes(data)
  return bad


def test_all_unreadable_images_are_named_at_once(tmp_path):
  """One at a time, mending ImageNet would take a day for each."""
  bad = add_with_bad(tmp_path / "in")
  with pytest.raises(errors.InputError, match=r"^4 images") as error:
    build(tmp_path / "in", tmp_path / "out")
  head, *lines = str(error.value).splitlines()
  assert "--skip_bad" in head
  assert len(lines) == 4
  for path in bad:
    (line,) = (line for line in lines if str(path) in line)
    assert line.endswith(f" ({path.relative_to(tmp_path / 'in').parts[0]})")
    assert len(line) > len(str(path)) + 15  # There is a reason.
  assert not (tmp_path / "out").exists()


def test_skipped_images_are_counted(tmp_path):
  bad = add_with_bad(tmp_path / "in")
  output = tmp_path / "out"
  counts, _, notes = build(tmp_path / "in", output, skip_bad=True)
  assert counts == {"train": 100, "test": 4}
  assert "4 images" in notes[0]
  for split, count in counts.items():
    labels = [label for _, label in stored(output, split)]
    assert (len(labels), sum(labels)) == (count, count // 2)
  for path in bad:
    path.unlink()
  build(tmp_path / "in", tmp_path / "other")
  for name in statistics.FILES:
    other = tmp_path / "other" / name
    assert (output / name).read_bytes() == other.read_bytes()


def test_a_split_of_bad_images_alone_is_refused(tmp_path):
  for name in ["train", "val"]:
    add(tmp_path / "in" / name, ["a", "b"], 2, 2)
  for path in (tmp_path / "in" / "val").rglob("*.png"):
    path.write_bytes(b"no image")
  with pytest.raises(errors.InputError, match="no image of validation"):
    build(tmp_path / "in", tmp_path / "out", skip_bad=True)
  assert not (tmp_path / "out").exists()


def test_a_class_that_loses_all_its_images_is_refused(tmp_path):
  """As the head of a .csv, whose class would stay, empty, in silence."""
  folder = add(tmp_path / "in", ["a", "b"], 3, 3)
  rows = [f"{n}/{i}.png,{n}" for n in "ab" for i in range(3)]
  (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
  with pytest.raises(errors.InputError, match="no image of label in train"):
    build(folder / "list.csv", tmp_path / "out", splits="train", skip_bad=True)
  assert not (tmp_path / "out").exists()


# Resuming, after a failure for bad images: nothing is left to chance.


def fail(source, output, **options):
  with pytest.raises(errors.InputError, match="cannot be read"):
    build(source, output, **options)


def test_a_rerun_that_skips_is_served_from_finished_shards(tmp_path):
  """And its bytes are those of a run that skipped from the start."""
  add_with_bad(tmp_path / "in")
  output = tmp_path / "1" / "out"
  fail(tmp_path / "in", output)
  before = identities(unfinished(output) / "out")
  assert len(before) == 5
  counts, _, notes = build(tmp_path / "in", output, skip_bad=True)
  assert identities(output) == before
  assert [path.name for path in output.parent.iterdir()] == ["out"]
  other = tmp_path / "2" / "out"
  assert build(tmp_path / "in", other, skip_bad=True)[0] == counts
  assert hashes(output) == hashes(other)
  assert "4 images" in notes[0]


@pytest.mark.parametrize(
  "options",
  [{"size_px": 24}, {"raw": True}, {"seed": 1}],
  ids=str,
)
def test_a_rerun_with_other_options_takes_no_old_shard(tmp_path, options):
  """Half the images at another size, in silence."""
  source = add_noise(tmp_path / "in", 50)
  (source / "a" / "bad.png").touch()
  output = tmp_path / "1" / "out"
  fail(source, output)
  build(source, output, skip_bad=True, **options)
  build(source, tmp_path / "2" / "out", skip_bad=True, **options)
  assert hashes(output) == hashes(tmp_path / "2" / "out")
  assert [path.name for path in output.parent.iterdir()] == ["out"]


# NumPy does not close a damaged file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["done", "out"])
def test_a_shard_that_is_not_complete_is_written_again(tmp_path, damage):
  """Cut short by a crash of the machine, say."""
  add_with_bad(tmp_path / "in")
  output = tmp_path / "1" / "out"
  fail(tmp_path / "in", output)
  for path in (unfinished(output) / damage).iterdir():
    os.truncate(path, path.stat().st_size // 2)
  build(tmp_path / "in", output, skip_bad=True)
  build(tmp_path / "in", tmp_path / "2" / "out", skip_bad=True)
  assert hashes(output) == hashes(tmp_path / "2" / "out")


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
  """It would be taken into the output and stay there."""
  add_with_bad(tmp_path / "in")
  output = tmp_path / "1" / "out"
  fail(tmp_path / "in", output)
  work = unfinished(output)
  name = shard_files(work / "out")[0].name
  for path in [
    work / f"{name}.12345.partial",
    work / "spool",
    work / "out" / "stray.array_record-00000-of-00001",
    work / "done" / "stray.array_record-00000-of-00001",
  ]:
    path.write_bytes(b"half")
  build(tmp_path / "in", output, skip_bad=True)
  build(tmp_path / "in", tmp_path / "2" / "out", skip_bad=True)
  assert hashes(output) == hashes(tmp_path / "2" / "out")
  assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_source_that_changed_meanwhile_is_seen(tmp_path, packed):
  """Images of the same size in the same place, with their old times."""
  folder = add_noise(tmp_path / "in" / "pets", 50)
  (folder / "b" / "zz.png").touch()
  source = tmp_path / "in.tar" if packed else folder
  output = tmp_path / "1" / "out"
  for seed in (0, 9):
    for index, path in enumerate(sorted((folder / "a").iterdir())[:20]):
      times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
      noise([seed, index], SIZE_PX, SIZE_PX).save(path)
      os.utime(path, ns=times)
    if packed:
      with tarfile.open(source, "w") as archive:
        archive.add(folder, ".")
    if seed == 0:
      fail(source, output, raw=True)
  build(source, output, skip_bad=True, raw=True)
  build(source, tmp_path / "2" / "out", skip_bad=True, raw=True)
  assert hashes(output) == hashes(tmp_path / "2" / "out")


def test_a_full_disk_is_one_line(tmp_path):
  """No output appears, and the same command continues."""
  source = add_noise(tmp_path / "in", 60, size_px=24)
  output = tmp_path / "1" / "out"
  with no_file_grows_beyond(50_000):
    with pytest.raises(errors.InputError, match="cannot be written") as error:
      build(source, output, size_px=24, raw=True)
  assert len(str(error.value).splitlines()) == 1
  assert not output.exists()
  build(source, output, size_px=24, raw=True)
  build(source, tmp_path / "2" / "out", size_px=24, raw=True)
  assert hashes(output) == hashes(tmp_path / "2" / "out")


# Bad input.


def test_shards_that_another_process_took_are_one_line(
  tmp_path, small, monkeypatch
):
  """Two commands at once may remove each other's files, but not mix them."""
  monkeypatch.setattr(shards, "_run", lambda plan, workers: [])
  with pytest.raises(errors.InputError, match="another process writes there"):
    build(small, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_an_existing_output_is_not_touched(tmp_path, small):
  output = tmp_path / "out"
  output.mkdir()
  (output / "precious").write_text("precious")
  with pytest.raises(errors.InputError, match=r"output=.* exists; choose"):
    build(small, output)
  assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "precious"]


# The command.


def arguments(source, output, *more, size_px=SIZE_PX):
  flags = [f"--source={source}", f"--output={output}", f"--size={size_px}"]
  module = [sys.executable, "-m", "alexnet_jax", "prepare"]
  return [*module, *flags, *more]


def command(*options, **named):
  return run_command("prepare", *arguments(*options, **named)[4:])


def test_every_flag_reaches_its_option(tmp_path):
  add_noise(tmp_path / "in", 20, size_px=24)
  (tmp_path / "in" / "a" / "bad.jpg").touch()
  words = tmp_path / "words.txt"
  words.write_text("b second, letter\na first\n")
  options = {
    "size_px": 20,
    "splits": "validation=0.3",
    "seed": 5,
    "synsets": str(words),
    "skip_bad": True,
    "raw": True,
  }
  build(tmp_path / "in", tmp_path / "1" / "out", **options)
  flags = ["--splits=validation=0.3", "--seed=5", "--skip_bad", "--raw"]
  flags += [f"--synsets={words}", "--workers=0"]
  output = tmp_path / "2" / "out"
  done = command(tmp_path / "in", output, *flags, size_px=20)
  assert (done.returncode, done.stderr) == (0, "")
  assert hashes(output) == hashes(tmp_path / "1" / "out")
  assert class_names(output) == ["b second, letter", "a first"]
  assert "cannot be read: 1 images" in done.stdout
  # Each of them says something.
  for name in set(options) - {"size_px", "skip_bad"}:
    fewer = {key: value for key, value in options.items() if key != name}
    build(tmp_path / "in", tmp_path / name / "out", **fewer)
    assert hashes(tmp_path / name / "out") != hashes(output)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--source=nowhere", "--output=out"], ["source='nowhere'"]),
    (["--source=x", "--output=x", "--size=7"], ["--size=7"]),
  ],
)
def test_the_command_refuses_in_one_line(flags, words):
  done = run_command("prepare", *flags)
  assert_refused(done, *words)
  assert len(done.stderr.splitlines()) == 1


# The command, killed.

SLOW_PX = 200


@pytest.fixture(scope="module", name="slow")
def fixture_slow(tmp_path_factory):
  """400 images, the hashes of what is made of them, and seconds for a shard."""
  folder = tmp_path_factory.mktemp("slow") / "in"
  for label, name in enumerate("ab"):
    for index in range(10):
      image = noise([label, index], 300, 300)
      save(folder / name / f"{index}-0.png", image, compress_level=1)
      for copy in range(1, 20):
        path = folder / name / f"{index}-{copy}.png"
        os.link(folder / name / f"{index}-0.png", path)
  output = folder.parent / "complete" / "out"
  start = time.perf_counter()
  build(folder, output, size_px=SLOW_PX)
  seconds = (time.perf_counter() - start) / shards_in(output)
  return folder, hashes(output), seconds


def shards_in(output):
  return len(list(output.glob("*.array_record-*")))


def in_session(session):
  """The command lines of the live processes of a session."""
  lines = {}
  for path in Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      state, _, _, of, *_ = (
        (path / "stat").read_text().rpartition(")")[2].split()
      )
      if int(of) == session and state not in "ZX":
        lines[int(path.name)] = (path / "cmdline").read_text()
  return lines


def workers_of(session):
  lines = in_session(session).items()
  return [pid for pid, line in lines if "spawn_main" in line]


def wait_until(condition, seconds=30.0):
  end = time.monotonic() + seconds
  while not (value := condition()) and time.monotonic() < end:
    time.sleep(0.002)
  assert value
  return value


@contextlib.contextmanager
def started(source, output, *more, size_px=SLOW_PX):
  """The command in a session of its own; none of it outlives the test."""
  with subprocess.Popen(
    arguments(source, output, *more, size_px=size_px),
    cwd=Path(__file__).parents[3],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  ) as process:
    try:
      yield process
    finally:
      for pid in in_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)


def finished(output):
  """The identity of each shard that a killed run need not make again."""
  work = unfinished(output)
  done = {path.name for path in work.glob("done/*")}
  return {k: v for k, v in identities(work / "out").items() if k in done}


# The signal, and what is waited for before a random moment in the time that a
# shard takes.
MOMENTS = [
  (signal.SIGKILL, "spawning"),
  (signal.SIGTERM, "writing"),
  (signal.SIGINT, "another"),
  (signal.SIGKILL, "another"),
]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(
  tmp_path, slow
):
  """Its workers die with it, and what they finished is kept."""
  source, expected, seconds = slow
  output = tmp_path / "out"
  work = unfinished(output)
  chance = random.Random(0)
  codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
  kept = {}
  for workers, (number, event) in enumerate(MOMENTS):
    old = set(work.glob("*.partial"))
    flag = f"--workers={1 + workers % 2}"
    with started(source, output, flag) as process:
      reached = {
        "spawning": lambda pid=process.pid: workers_of(pid),
        "writing": lambda old=old: set(work.glob("*.partial")) - old,
        "another": lambda kept=kept: len(finished(output)) > len(kept),
      }
      wait_until(reached[event])
      time.sleep(chance.uniform(0, seconds))
      if number == signal.SIGINT:  # A terminal sends it to all of them.
        os.killpg(process.pid, number)
      else:
        process.send_signal(number)
      _, stderr = process.communicate(timeout=30)
      wait_until(lambda pid=process.pid: not in_session(pid), 5)
    if number == signal.SIGKILL:  # Then Python tells of its semaphores.
      stderr = ""
    message = "interrupted\n" if number == signal.SIGINT else ""
    assert (process.returncode, stderr) == (codes[number], message)
    assert not output.exists()
    after = finished(output)
    assert {name: after.get(name) for name in kept} == kept
    kept = after
  build(source, output, size_px=SLOW_PX)
  assert hashes(output) == expected
  assert 2 <= len(kept) < shards_in(output)
  made = identities(output)
  assert {name: made[name] for name in kept} == kept
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path):
  """Each worker imports it, and would begin the same work."""
  script = tmp_path / "script.py"
  script.write_text(
    "from pathlib import Path\n"
    "from alexnet_jax.data.prepare import shapes\n"
    "counts = dict(train=40, validation=40, test=40)\n"
    f"shapes.generate(Path({str(tmp_path / 'out')!r}), **counts, workers=1)\n"
  )
  result = subprocess.run(
    [sys.executable, script], capture_output=True, text=True, check=False
  )
  assert result.returncode == 1
  errors_ = [x for x in result.stderr.splitlines() if "InputError: " in x]
  assert len(errors_) == 1
  assert "`if __name__ == '__main__':`" in errors_[0]
  assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
def test_workers_pass_no_warning_on(tmp_path, capfd):
  """Pillow warns of an odd EXIF block, which spoils no pixels."""
  odd = b"Exif\0\0II*\0\x08\0\0\0\x09\0cut"
  for name in ("a/0.jpg", "b/0.jpg"):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    noise([0, 0], SIZE_PX, SIZE_PX).save(path, exif=odd)
  with pytest.warns(UserWarning, match="EXIF"), Image.open(path) as image:
    image.getexif()
  build(tmp_path / "in", tmp_path / "out", splits="validation=0", workers=1)
  assert capfd.readouterr().err == ""


def test_a_killed_worker_is_one_line(tmp_path, slow):
  """As the system does for want of memory; what was finished is kept."""
  source, *_ = slow
  output = tmp_path / "out"
  with started(source, output, "--workers=2") as process:
    wait_until(lambda: finished(output))
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=30)
    wait_until(lambda: not in_session(process.pid), 5)
  result = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
  assert_refused(result, "worker was killed", "--workers")
  assert len(stderr.splitlines()) == 1
  assert not output.exists()
  assert finished(output)
