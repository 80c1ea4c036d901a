"""The command that answers images, as its users run it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, run_command
from drawn_runs import NAMES, small_config, write_run
from PIL import Image

import alexnet_jax
from alexnet_jax.tools import predict
from alexnet_jax.tools.figures import drawings

RNG = np.random.default_rng(0)


def image():
  patches = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return patches.repeat(18, axis=0).repeat(18, axis=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run, and images in folders, some of them named as classes."""
  place = tmp_path_factory.mktemp("place")
  write_run(place / "run", small_config())
  for name in ("owl/1.png", "owl/2.png", "bee/1.png", "other/x.png"):
    file = place / "images" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image()).save(file)
  (place / "images" / "notes.txt").write_text("no image")
  return place


@pytest.fixture(scope="module")
def expected(place):
  """Probabilities of each file, by the library."""
  model = alexnet_jax.load(place / "run")
  files = sorted((place / "images").rglob("*.png"))
  images = [np.asarray(Image.open(file)) for file in files]
  return dict(zip(map(str, files), model.predict(images), strict=True))


def ask(place, *words, **settings):
  command = [f"--workdir={place / 'run'}", *map(str, words)]
  return subprocess.run(
    [sys.executable, "-m", "alexnet_jax", "predict", *command],
    capture_output=True, text=True, **settings,
  )  # fmt: skip


def test_json_lines_hold_the_best_classes_of_each_image(place, expected):
  result = ask(place, place / "images", "--format=jsonl")
  assert result.returncode == 0, result.stderr
  lines = [json.loads(line) for line in result.stdout.splitlines()]
  assert [line["image"] for line in lines] == list(expected)
  for line in lines:
    shares = expected[line["image"]]
    best = sorted(range(len(NAMES)), key=lambda k: -shares[k])[:5]
    assert [a["label"] for a in line["top"]] == best
    assert [a["class"] for a in line["top"]] == [NAMES[k] for k in best]
    found = [a["probability"] for a in line["top"]]
    assert found == pytest.approx([shares[k] for k in best], rel=1e-4)
  true = [line["true"] for line in lines]
  assert true == ["bee", None, "owl", "owl"]


def test_the_next_command_need_not_compile_again(place, tmp_path):
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  kept = []
  for _ in range(2):
    result = ask(place, place / "images", env=environment)
    assert result.returncode == 0, result.stderr
    # Whether small programs are kept depends on how long they took.
    kept.append(sorted(tmp_path.glob("alexnet_jax/jit_look*")))
  assert kept[0]
  assert kept[0] == kept[1]


def test_csv_and_names_from_standard_input(place, expected):
  files = list(expected)[::-1]
  result = ask(
    place, "-", "--format=csv", "--top=2", input="\n".join([*files, "", ""])
  )
  assert result.returncode == 0, result.stderr
  rows = list(csv.DictReader(io.StringIO(result.stdout)))
  assert [row["image"] for row in rows] == files
  for row in rows:
    shares = expected[row["image"]]
    first, second = np.argsort(-shares)[:2]
    assert (row["class_1"], row["class_2"]) == (NAMES[first], NAMES[second])
    assert float(row["probability_2"]) == pytest.approx(
      shares[second], abs=1e-5
    )


def test_table_of_a_pattern_names_the_true_class(place, expected):
  result = ask(place, place / "images" / "owl" / "*.png")
  assert result.returncode == 0, result.stderr
  blocks = result.stdout.strip().split("\n\n")
  assert len(blocks) == 2
  for block, file in zip(
    blocks, [x for x in expected if "owl" in x], strict=True
  ):
    head, *lines = block.splitlines()
    assert head == f"{file}  (true: owl)"
    best = NAMES[int(expected[file].argmax())]
    assert lines[0].split() == [f"{expected[file].max():.2%}", best]
    assert len(lines) == 5


def test_an_image_that_cannot_be_read_is_listed_and_the_others_answered(
  place, tmp_path
):
  whole = place / "images" / "bee" / "1.png"
  half = tmp_path / "half.png"
  half.write_bytes(whole.read_bytes()[:60])
  missing = tmp_path / "missing.jpg"
  result = ask(place, half, whole, missing, "--format=jsonl")
  assert_refused(
    result, "2 of 3 images cannot be read", repr(str(half)),
    repr(str(missing)), "No such file",
  )  # fmt: skip
  (line,) = result.stdout.splitlines()
  assert json.loads(line)["image"] == str(whole)


def test_names_that_are_no_text_are_names_all_the_same(place, tmp_path):
  """Latin-1 in a terminal of UTF-8, a NUL, and what is too long for a name."""
  whole = place / "images" / "bee" / "1.png"
  odd = str(tmp_path / "caf\udce9.png")
  far = str(tmp_path / "ünï 日本.png")
  for file in (odd, far):
    shutil.copy(whole, file)
  for encoding in ("utf-8:strict", "ascii"):
    result = ask(
      place, "-", "x" * 300, far, "--format=jsonl",
      f"--panel={tmp_path / 'panel.pdf'}",
      input=f"{odd}\nfirst\0second\n", errors="surrogateescape",
      env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert_refused(
      result, "2 of 4 images", "'first\\x00second'", "File name too long"
    )
    names = [json.loads(line)["image"] for line in result.stdout.splitlines()]
    assert names == [odd, far]
    assert (tmp_path / "panel.pdf").exists()


def in_a_shell(place, words, unbuffered=""):
  """Asks for the class of an image, with what a shell makes of its streams."""
  image = place / "images" / "bee" / "1.png"
  command = f"-m alexnet_jax predict --workdir={place / 'run'} {image} {words}"
  return subprocess.run(
    ["bash", "-c", f"set -o pipefail; {sys.executable} {command}"],
    capture_output=True, text=True,
    env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
  )  # fmt: skip


def test_standard_streams_may_be_closed(place):
  for words, printed in (("<&-", "bee"), (">&-", "")):
    result = in_a_shell(place, words)
    assert (result.returncode, result.stderr) == (0, "")
    assert printed in result.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_may_stop(unbuffered, place):
  result = in_a_shell(place, "| true", unbuffered)
  assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_without_room_is_told(unbuffered, place):
  result = in_a_shell(place, "> /dev/full", unbuffered)
  assert_refused(result, "the output cannot be written (No space left")
  assert result.stderr.count("\n") == 1


def true_class(model, place, folder):
  """Returns what an image in a folder is said to be."""
  folder.mkdir(exist_ok=True)
  file = shutil.copy(place / "images" / "bee" / "1.png", folder)
  ((_, _, found),) = predict.answers(model, [Path(file)], views=1, top=1)
  return found["true"]


def test_a_folder_of_imagenet_is_named_by_its_wnid(place, tmp_path):
  shutil.copytree(place / "run", tmp_path / "run")
  names = ["n01440764 tench, Tinca tinca", "n01443537 goldfish", *"abcd"]
  (tmp_path / "run" / "class_names.json").write_text(json.dumps(names))
  model = alexnet_jax.load(tmp_path / "run")
  for folder, true in (
    ("n01440764", names[0]), (names[1], names[1]), ("b", "b"),
    ("n01440765", None), ("goldfish", None), ("b/../b", "b"),
  ):  # fmt: skip
    assert true_class(model, place, tmp_path / folder) == true


def test_a_name_of_two_classes_is_none_of_them(place, tmp_path):
  """ImageNet has two cranes and two maillots."""
  shutil.copytree(place / "run", tmp_path / "run")
  names = ["crane", "owl", "crane", *"abc"]
  (tmp_path / "run" / "class_names.json").write_text(json.dumps(names))
  model = alexnet_jax.load(tmp_path / "run")
  assert true_class(model, place, tmp_path / "crane") is None
  assert true_class(model, place, tmp_path / "owl") == "owl"


def test_images_of_other_kinds_are_read_right(place, tmp_path):
  """The same picture as GIF, 16-bit TIFF and CMYK has the same answer."""
  grey = image()[:, :, 0]
  rgb = np.stack([grey] * 3, axis=2)
  Image.fromarray(rgb).save(tmp_path / "0.png")
  Image.fromarray(grey).convert("P").save(tmp_path / "1.gif")
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "2.tiff")
  Image.fromarray(rgb).convert("CMYK").save(tmp_path / "3.jpg", quality=100)
  Image.fromarray(255 - rgb).save(tmp_path / "4.png")  # Which has another.
  result = ask(place, tmp_path, "--format=jsonl", "--top=6")
  assert result.returncode == 0, result.stderr
  each = []
  for line in result.stdout.splitlines():
    top = json.loads(line)["top"]
    each.append(
      [a["probability"] for a in sorted(top, key=lambda a: a["label"])]
    )
  first, *same, other = each
  assert len(same) == 3
  for found in same:
    assert found == pytest.approx(first, abs=0.003)
  assert np.abs(np.subtract(other, first)).max() > 0.01


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ([], ["no image is named"]),
    (["x.png", "--format=xml"], ["--format='xml'", "jsonl"]),
    (["x.png", "--views=3"], ["--views=3 must be 1 or 10"]),
    (["x.png", "--top=0"], ["--top=0 must be 1 or more"]),
    (["x.png", "--panel=no/x.png"], ["'no/x.png' has no folder"]),
    (["x.png", "--panel=x.gif"], ["'x.gif' must end in .png or .pdf"]),
    (["run"], ["'run' has no images"]),
  ],
)
def test_bad_command_is_refused(words, said, place):
  result = ask(place, *words, cwd=place)
  assert_refused(result, *said)


def test_what_is_no_run_is_refused(tmp_path):
  result = run_command("predict", f"--workdir={tmp_path}", "x.png")
  assert_refused(result, "holds no run")


def test_panel_shows_names_and_bars_and_marks_the_true_class(place, tmp_path):
  shown = [
    (tmp_path / "a.png", image(), {
      "top": [
        {"class": "owl", "label": 2, "probability": 0.5},
        {"class": "cat", "label": 0, "probability": 0.25},
      ],
      "true": "cat",
    }),
    (tmp_path / f"{'b' * 90}.png", image(), {
      "top": [{"class": "bee", "label": 4, "probability": 0.75}],
      "true": None,
    }),
  ]  # fmt: skip
  first, bars, second, others = drawings.panel(shown).axes
  np.testing.assert_array_equal(first.images[0].get_array(), shown[0][1])
  assert [text.get_text() for text in first.texts] == ["cat"]
  assert [text.get_text() for text in second.texts] == [f"{'b' * 23}…"]
  assert [text.get_text() for text in bars.texts] == ["owl", "cat"]
  assert [bar.get_width() for bar in bars.patches] == [0.5, 0.25]
  wrong, true = (bar.get_facecolor() for bar in bars.patches)
  assert wrong != true
  assert others.patches[0].get_facecolor() == wrong
  # Whatever the names, a bar of one picture can be held beside another's.
  widths = [axes.get_position().width for axes in (bars, others)]
  assert widths[0] == pytest.approx(widths[1])


def test_panel_is_written_as_it_is_named(place, tmp_path):
  for name, start in (("p.png", b"\x89PNG"), ("p.pdf", b"%PDF")):
    result = ask(place, place / "images", f"--panel={tmp_path / name}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / name).read_bytes().startswith(start)


def test_folders_are_no_images(tmp_path):
  (tmp_path / "folder.jpg").mkdir()
  (tmp_path / "folder.jpg" / "a.jpg").touch()
  (tmp_path / "b.jpg").touch()
  inside = [tmp_path / "b.jpg", tmp_path / "folder.jpg" / "a.jpg"]
  assert [*predict.find([str(tmp_path)], [])] == inside
  assert [*predict.find([str(tmp_path / "*")], [])] == inside[:1]


def test_find_takes_words_in_their_order(place):
  images = place / "images"
  found = predict.find(
    [str(images / "other"), "-", str(images / "bee" / "1.png")], ["one\n", "\n"]
  )
  assert [str(path) for path in found] == [
    str(images / "other" / "x.png"), "one", str(images / "bee" / "1.png"),
  ]  # fmt: skip
