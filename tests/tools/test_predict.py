"""The predict command: which images it reads, and what it prints."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, run_in_process
from drawn_runs import NAMES, small_config, write_run
from PIL import Image

import alexnet_jax
from alexnet_jax.tools import predict
from alexnet_jax.tools.figures import drawings

RNG = np.random.default_rng(0)
ROOT = Path(__file__).parents[2]


def image():
  patches = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return patches.repeat(18, axis=0).repeat(18, axis=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run, and images in folders, some of them named like classes."""
  place = tmp_path_factory.mktemp("place")
  fields = {"network.layers": ("conv1", "fc8"), "network.fc8.sigma": 0.004}
  config = small_config(**fields)
  write_run(place / "run", config)
  for name in ("owl/1.png", "owl/2.png", "bee/1.png", "other/x.png"):
    file = place / "images" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image()).save(file)
  (place / "images" / "notes.txt").write_text("no image")
  return place


@pytest.fixture(scope="module")
def model(place):
  return alexnet_jax.load(place / "run")


@pytest.fixture(scope="module")
def expected(place, model):
  """Probabilities of each file, by the library."""
  files = sorted((place / "images").rglob("*.png"))
  images = [np.asarray(Image.open(file)) for file in files]
  return dict(zip(map(str, files), model.predict(images), strict=True))


@pytest.fixture
def ask(model, monkeypatch, capsys):
  """Runs the command in this process, on a run that is open already."""
  monkeypatch.setattr(predict.inference, "load", lambda *_: model)

  def run(*words, lines=""):
    stdin = io.TextIOWrapper(io.BytesIO(lines.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    return run_in_process(capsys, "predict", "--workdir=run", *words)

  return run


def json_lines(result):
  assert result.returncode == 0, result.stderr
  return [json.loads(line) for line in result.stdout.splitlines()]


def test_json_lines_hold_the_best_classes_of_each_image(ask, place, expected):
  lines = json_lines(ask(place / "images", "--format=jsonl"))
  assert [line["image"] for line in lines] == list(expected)
  for line in lines:
    row = expected[line["image"]]
    best = sorted(range(len(NAMES)), key=lambda k: -row[k])[:5]
    assert [a["label"] for a in line["top"]] == best
    assert [a["class"] for a in line["top"]] == [NAMES[k] for k in best]
    found = [a["probability"] for a in line["top"]]
    assert found == pytest.approx([row[k] for k in best], rel=1e-4)
  assert [line["true"] for line in lines] == ["bee", None, "owl", "owl"]


def test_names_come_from_standard_input(ask, expected):
  files = list(expected)[::-1]
  lines = "\n".join([*files, "", ""])
  answers = json_lines(ask("-", "--format=jsonl", "--top=2", lines=lines))
  assert [answer["image"] for answer in answers] == files
  assert [len(answer["top"]) for answer in answers] == [2] * len(files)


def test_table_names_the_true_class(ask, place, expected):
  result = ask(place / "images" / "owl")
  blocks = result.stdout.strip().split("\n\n")
  files = [x for x in expected if "owl" in x]
  for block, file in zip(blocks, files, strict=True):
    head, *lines = block.splitlines()
    assert head == f"{file}  (true: owl)"
    best = NAMES[int(expected[file].argmax())]
    assert lines[0].split() == [f"{expected[file].max():.2%}", best]
    assert len(lines) == 5


def test_ten_views_are_those_of_the_library(ask, place, model, expected):
  file = next(iter(expected))
  (row,) = model.predict([np.asarray(Image.open(file))], views=10)
  (line,) = json_lines(ask(file, "--format=jsonl", "--views=10"))
  best = line["top"][0]
  assert best["probability"] == pytest.approx(row.max(), rel=1e-4)
  assert row.max() != pytest.approx(expected[file].max(), rel=1e-3)


def test_images_of_other_kinds_are_read_right(ask, tmp_path):
  """The same picture as GIF, TIFF and CMYK has the same answer."""
  grey = image()[:, :, 0]
  rgb = np.stack([grey] * 3, axis=2)
  Image.fromarray(rgb).save(tmp_path / "0.png")
  Image.fromarray(grey).convert("P").save(tmp_path / "1.gif")
  Image.fromarray(grey).save(tmp_path / "2.tiff")
  Image.fromarray(rgb).convert("CMYK").save(tmp_path / "3.jpg", quality=100)
  Image.fromarray(255 - rgb).save(tmp_path / "4.png")  # Which has another.
  each = []
  for line in json_lines(ask(tmp_path, "--format=jsonl", "--top=6")):
    top = sorted(line["top"], key=lambda a: a["label"])
    each.append([a["probability"] for a in top])
  first, *same, other = each
  assert len(same) == 3
  for found in same:
    assert found == pytest.approx(first, abs=0.003)
  assert np.abs(np.subtract(other, first)).max() > 0.01


def test_command_answers_what_it_can_and_lists_the_rest(place, tmp_path):
  whole = place / "images" / "bee" / "1.png"
  half, good = tmp_path / "half.png", str(tmp_path / "café.png")
  half.write_bytes(whole.read_bytes()[:60])
  Path(good).write_bytes(whole.read_bytes())
  result = subprocess.run(
    [sys.executable, "-m", "alexnet_jax", "predict",
     f"--workdir={place / 'run'}", half, "-", "x" * 300, "--format=jsonl",
     f"--panel={tmp_path / 'panel.pdf'}"],
    input=f"{good}\n", capture_output=True, cwd=ROOT, text=True,
  )  # fmt: skip
  assert_refused(
    result, "2 of 3 images cannot be read", repr(str(half)),
    "File name too long",
  )  # fmt: skip
  (line,) = result.stdout.splitlines()
  assert json.loads(line)["image"] == good
  assert (tmp_path / "panel.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ([], "no image in []"),
    (["run"], "no image in ['run']"),
    (["images", "--format=xml"], "table|jsonl"),
    (["images", "--top=0"], "--top=0"),
    (["images", "--views=3"], "views=3 must be 1 or 10"),
    (["images", "--panel=x.gif"], "'x.gif' must end in .png or .pdf"),
  ],
)
def test_bad_command_is_refused(words, said, ask, place, monkeypatch):
  monkeypatch.chdir(place)
  assert_refused(ask(*words), said)


def true_classes(place, tmp_path, names):
  """Returns the true class of an image by its folder, for classes of a run."""
  run = tmp_path / "run"
  shutil.copytree(place / "run", run)
  (run / "class_names.json").write_text(json.dumps(names))
  model = alexnet_jax.load(run)

  def of(folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    file = shutil.copy(place / "images" / "bee" / "1.png", tmp_path / folder)
    ((_, _, found),) = predict.predictions(model, [Path(file)], 1, 1)
    return found["true"]

  return of


def test_a_folder_of_imagenet_is_named_by_its_wnid(place, tmp_path):
  names = ["n01440764 tench, Tinca tinca", "n01443537 goldfish", *"abcd"]
  of = true_classes(place, tmp_path, names)
  for folder, true in (
    ("n01440764", names[0]), (names[1], names[1]), ("b", "b"),
    ("n01440765", None), ("goldfish", None), ("b/../b", "b"),
  ):  # fmt: skip
    assert of(folder) == true


def test_a_name_of_two_classes_is_none_of_them(place, tmp_path):
  """ImageNet has two cranes and two maillots."""
  of = true_classes(place, tmp_path, ["crane", "owl", "crane", *"abc"])
  assert of("crane") is None
  assert of("owl") == "owl"


def test_panel_shows_names_and_bars_and_marks_the_true_class(tmp_path):
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
  first, second, bars, others = drawings.panel(shown).axes
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


def test_panel_is_written_as_png(ask, place, tmp_path):
  result = ask(place / "images", f"--panel={tmp_path / 'p.png'}")
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_folders_are_no_images(tmp_path):
  (tmp_path / "folder.jpg").mkdir()
  (tmp_path / "folder.jpg" / "a.jpg").touch()
  (tmp_path / "b.jpg").touch()
  inside = [tmp_path / "b.jpg", tmp_path / "folder.jpg" / "a.jpg"]
  assert [*predict.find([str(tmp_path)], [])] == inside


@pytest.fixture
def odd_files(tmp_path):
  """A pipe, a socket, a device and a file that is far too large."""
  folder = tmp_path / "odd"
  folder.mkdir()
  os.mkfifo(folder / "pipe.jpg")
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(folder / "socket.jpg"))
  (folder / "zero.jpg").symlink_to("/dev/zero")
  (folder / "large.jpg").touch()
  os.truncate(folder / "large.jpg", 2**40)
  return folder


def test_what_is_no_image_file_is_not_waited_for(ask, odd_files):
  names = [str(x) for x in odd_files.iterdir()]
  for words, lines in ((odd_files,), ""), (("-",), "\n".join(names)):
    result = ask(*words, lines=lines)
    assert_refused(result, "4 of 4 images cannot be read", "1,099,511,627,776")
    assert result.stderr.count("no regular file") == 2
  for name in names:
    assert isinstance(predict.read_image(Path(name), 8), str)


def test_names_do_not_act_on_the_terminal(
  ask, place, model, tmp_path, monkeypatch
):
  """Of files and of classes; and a name may be of bytes that are no text."""
  names = [
    "\x1b[2J.png",
    "a\nb\r.png",
    "\u202egnp.png",
    os.fsdecode(b"\xff.png"),
  ]
  for name in names:
    shutil.copy(place / "images" / "bee" / "1.png", tmp_path / name)
  evil = tuple(f"\x1b]0;title\x07{name}" for name in NAMES)
  monkeypatch.setattr(model, "class_names", evil)
  table = ask(tmp_path, "--top=1")
  lines = json_lines(ask(tmp_path, "--top=1", "--format=jsonl"))
  assert table.returncode == 0
  assert set(table.stdout) <= {*map(chr, range(32, 127)), "\n"}
  for escaped in ("\\x1b[2J.png", "a\\nb\\r", "\\u202egnp", "\\udcff.png"):
    assert escaped in table.stdout
  assert table.stdout.count("\\x1b]0;title\\x07") == len(names)
  assert {Path(line["image"]).name for line in lines} == set(names)
