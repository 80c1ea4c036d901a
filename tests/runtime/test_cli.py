"""Commands: help, one-line errors, exit codes, files replaced as a whole."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from absl import flags
from commands import command_line

from alexnet_jax.data import records
from alexnet_jax.runtime import cli, errors
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools import commands, prepare


def run(capsys, *words, entry=commands.main):
  """Runs a command line; returns its exit code and both outputs."""
  with command_line(*words):
    try:
      entry()
      code = 0
    except SystemExit as e:
      code = e.code or 0
  out, err = capsys.readouterr()
  return code, out, err


WITH_CONFIG = {
  "train": "quickstart",
  "summary": "quickstart",
  "show": "alexnet",
  "plan": "quickstart",
}


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_shows_usage_and_the_flags_with_defaults(command, capsys):
  code, out, err = run(capsys, "alexnet", command, "--help")
  assert (code, err) == (0, "")
  assert f"alexnet {command} " in out
  defined = re.findall(r"^  --(\w+)", out, re.MULTILINE)
  assert defined
  # Flags of libraries are not those of the command.
  assert not {"help", "verbosity", "config.seed"} & set(defined)
  assert ("config" in defined) == (command in WITH_CONFIG)
  if command in WITH_CONFIG:
    assert f"  --config={WITH_CONFIG[command]}\n" in out
    assert "--config.FIELD=VALUE" in out


def test_help_lists_the_commands(capsys):
  code, out, _ = run(capsys, "alexnet")
  assert code == 0
  assert re.findall(r"^  (\w+) ", out, re.MULTILINE) == list(commands.COMMANDS)


def test_unknown_command_names_the_nearest(capsys):
  code, out, err = run(capsys, "alexnet", "sumary")
  assert (code, out) == (1, "")
  assert err.startswith("error: command='sumary' is not known.")
  assert "'summary'" in err


def raised(error):
  def main(_):
    raise error

  return main


@pytest.mark.parametrize(
  ("main", "words", "code", "text"),
  [
    (raised(InputError("a\nb\r\u2028c")), (), 1, "error: a\\nb\\r\\u2028c\n"),
    (raised(KeyboardInterrupt), (), 130, "interrupted\n"),
    (print, ("--nosuch=3",), 1, "error: Unknown command line flag 'nosuch';"),
    (print, ("--count=x",), 1, "error: flag --count=x: "),
    (print, ("word",), 1, "error: 'word' is no flag; write --FLAG=VALUE.\n"),
  ],
)
def test_bad_input_ends_in_one_line(main, words, code, text, capsys):
  def define_flags():
    flags.DEFINE_integer("count", 3, "How many.")

  found = run(capsys, "x", *words, entry=lambda: cli.run(main, define_flags))
  assert found[:2] == (code, "")
  assert found[2].startswith(text)
  assert found[2].count("\n") == 1


def test_other_errors_keep_their_traceback(capsys):
  with pytest.raises(ZeroDivisionError):
    run(
      capsys,
      "x",
      entry=lambda: cli.run(raised(ZeroDivisionError), lambda: None),
    )


PRINTS = """
from alexnet_jax.data import records
from alexnet_jax.runtime import cli
cli.run(lambda _: print("x" * {size}), lambda: None)
"""


@pytest.mark.parametrize("size", [1, 10**6])
def test_reader_of_the_output_may_stop(size):
  """`| head`: no traceback, whether the output fills the pipe or not."""
  command = f"{sys.executable} -c '{PRINTS.format(size=size)}' | sleep 0"
  result = subprocess.run(
    ["bash", "-c", f"set -o pipefail; {command}"],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert result.stderr == ""
  # A short text may reach the pipe before its reader has ended.
  assert result.returncode in ((141,) if size > 1 else (0, 141))


def test_file_is_replaced_only_by_a_whole_one(tmp_path):
  output = tmp_path / "r.html"
  output.write_text("old")

  def fail():
    with cli.replacing(output) as new:
      new.write_text("half")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert output.read_text() == "old"
  assert list(tmp_path.iterdir()) == [output]
  with cli.replacing(output) as new:
    new.write_text("new")
    assert output.read_text() == "old"
  assert output.read_text() == "new"
  assert list(tmp_path.iterdir()) == [output]


def test_only_an_ordinary_file_is_replaced(tmp_path):
  """A folder or a device stays; a link stays, and its target is replaced."""
  page, link = tmp_path / "r.html", tmp_path / "l.html"
  page.write_text("old")
  link.symlink_to(page.name)
  for file in (tmp_path, Path(os.devnull), tmp_path / "none" / "r.html"):
    with pytest.raises(InputError, match="cannot be written"):
      with cli.replacing(file):
        raise AssertionError
  with cli.replacing(link) as new:
    new.write_text("new")
  assert link.is_symlink()
  assert page.read_text() == "new"


def test_folder_of_a_flag_is_made_or_refused(tmp_path):
  cli.make_folder("--output", tmp_path / "a" / "b")
  assert (tmp_path / "a" / "b").is_dir()
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match=r"--output=.*cannot be written"):
    cli.make_folder("--output", tmp_path / "file" / "b")


def test_progress_is_shown_on_a_terminal_alone(capsys):
  with cli.progress("images", 3) as advance:
    advance(2)
  assert capsys.readouterr() == ("", "")


def test_unknown_name_gets_the_nearest_and_all_known():
  text = str(errors.unknown("layout", "owt_d", ("data", "owt_a", "owt_b")))
  assert text.startswith("layout='owt_d' is not known. Did you mean 'owt_")
  assert text.endswith("Known: data, owt_a, owt_b.")
  text = str(errors.unknown("views", 5, (1, 10)))
  assert text == "views=5 is not known. Known: 1, 10."


def test_texts_are_shortened():
  assert errors.first_few("abc", 5) == "a, b, c"
  assert errors.first_few("abcdefg", 2, "; ") == "a; b and 5 more"
  assert errors.reason(OSError("x\ny " * 99)).startswith("OSError: x y x y")
  assert len(errors.reason(OSError("x\ny " * 99))) <= 200


def test_warnings_of_libraries_are_not_shown(capsys):
  """Of this process alone, which ends with the command."""

  def main(_):
    warnings.warn("Corrupt EXIF data", stacklevel=1)

  found = run(capsys, "x", entry=lambda: cli.run(main, lambda: None))
  assert found == (0, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_is_read_and_printed(encoding):
  """Whatever the encoding of the terminal, also in one that is strict."""
  code = """
import sys
from alexnet_jax.data import records
from alexnet_jax.runtime import cli
def main(_):
  for line in sys.stdin:
    print(line.strip().encode("utf-8", "surrogateescape"))
    cli.echo(line.strip())
    print(line.strip())
cli.run(main, lambda: None)
"""
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(__file__).parents[2],
    env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"},
    input=b"caf\xc3\xa9 \xff\n",
    capture_output=True,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[0] == rb"b'caf\xc3\xa9 \xff'"
  assert rb"\udcff" in result.stdout


def test_settings_of_jax_in_the_shell_do_not_reach_a_command():
  """With 64-bit numbers, plan's formulas would differ from the program."""
  code = """
import sys
from alexnet_jax.tools import commands
sys.argv = ["alexnet", "summary"]
try:
  commands.main()
finally:
  import jax
  print(jax.numpy.zeros(1).dtype)
"""
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(__file__).parents[2],
    env=os.environ | {"JAX_ENABLE_X64": "1"},
    capture_output=True,
    text=True,
  )
  assert result.stdout.endswith("float32\n"), result.stderr


ODD = ["a b", "it's", '"$(date)"', "-x", "*;&|<"]


@pytest.mark.parametrize("name", ODD)
def test_printed_commands_survive_the_shell(name):
  _, command = next(prepare.advice(name, 64, {"train": 9}, 2)).split(": ", 1)
  with pytest.raises(InputError) as none:
    records.open_directory(Path(f"{name}-none"))
  remedy = str(none.value).partition("with ")[2].removesuffix(".")
  for line, flag in (
    (command, f"--config.data_dir={name}"),
    (remedy, f"--output={name}-none"),
  ):
    line = f"alexnet() {{ printf '%s\\0' \"$@\"; }}; {line}"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert flag in found.stdout.split("\0")


def test_output_that_the_shell_has_closed_is_not_missed():
  words = sys.executable, "-m", "alexnet_jax", "summary", "--config=quickstart"
  command = f"{shlex.join(words)} >&-"
  result = subprocess.run(command, shell=True, stderr=-1, text=True)
  assert (result.returncode, result.stderr) == (0, "")
