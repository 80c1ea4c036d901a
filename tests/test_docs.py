"""README and docs/ name only files, commands, flags and fields that exist."""

import importlib
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags

from alexnet_jax.runs import config_files
from alexnet_jax.tools import commands

ROOT = Path(__file__).parents[1]
PAGES = (
  ROOT / "README.md",
  ROOT / "configs" / "README.md",
  *sorted((ROOT / "docs").glob("*.md")),
)
BLOCK = re.compile(r"^ {4,}(.*(?:\\\n.*)*)$", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")

every_page = pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def code_of(page):
  """Returns the lines of a page's code blocks, and what is in backticks."""
  text = page.read_text()
  code = BLOCK.findall(text) + SPAN.findall(BLOCK.sub("", text))
  return [re.sub(r"\\?\s+", " ", line) for line in code]


@pytest.fixture(scope="module")
def flags_of():
  """Returns the flags of each command; none of them runs."""
  found = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", ["alexnet"])
    for name, (module, _) in commands.COMMANDS.items():
      before = set(flags.FLAGS)
      importlib.import_module(f"alexnet_jax.{module}").define_flags()
      found[name] = set(flags.FLAGS) - before
      flags.FLAGS.remove_flag_values(found[name])
  return found


def fields_of(config):
  """Returns the fields of what `--config=` names; of a list, none."""
  name, _, argument = config.partition(":")
  file = ROOT / (name if name.endswith(".py") else f"configs/{name}.py")
  get_config = runpy.run_path(str(file))["get_config"]
  if argument == "list":
    return {}
  found = get_config(argument) if argument else get_config()
  return config_files.flatten(found.to_dict())


def test_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@every_page
def test_links_lead_somewhere(page):
  for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if "://" not in link:
      assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_page_and_every_core_file_is_listed():
  index = (ROOT / "docs" / "README.md").read_text()
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "README.md" or f"({page.name})" in index, page
  readme = (ROOT / "README.md").read_text()
  core = {file.name for file in (ROOT / "alexnet_jax").glob("[!_]*.py")}
  for name in core - {"configs.py"}:  # It only finds the folder of that name.
    assert f"\n      {name} " in readme, name


# ml_collections loads config files by a way that Python is to drop.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.slow
def test_commands_and_flags_exist(flags_of):
  shown = set()
  for page in PAGES:
    for code in code_of(page):
      for name, words in re.findall(r"\balexnet ([a-z]\w*)([^|#;]*)", code):
        shown.add(name)
        for flag in re.findall(r" --(\w+)", words):
          assert flag in flags_of[name], f"{page}: {code}"
      # On its own, as in `--size=256`.
      for flag in re.findall(r"^--(\w+)", code):
        assert any(flag in each for each in flags_of.values()), code
  assert shown == set(commands.COMMANDS)


@every_page
def test_configs_and_their_fields_exist(page):
  fields = fields_of("alexnet")
  for code in code_of(page):
    named = re.findall(r"--config=([a-z]\S+)", code)
    known = set(fields).union(*map(fields_of, named))
    for field in re.findall(r"\bconfig\.([a-z][\w.]+)", code):
      assert field in known or f"config.{field}" == "config.json", code


@every_page
def test_names_stand_in_the_code(page):
  """Catches what was renamed: a name with an underscore is one of the code."""
  words = set()
  for folder in ("alexnet_jax", "configs", "experiments"):
    for file in (ROOT / folder).rglob("*.py"):
      words |= {file.stem, *re.findall(r"\w+", file.read_text())}
  for code in SPAN.findall(page.read_text()):
    if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", code):
      assert code in words, code


def test_make_targets_scripts_and_extras_exist():
  targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  for page in PAGES:
    for code in code_of(page):
      for extra in re.findall(r"'\.\[(\w+)\]'", code):
        assert extra in project["optional-dependencies"], f"{page}: {code}"
      for target in re.findall(r"\bmake ([a-z]\w*)", code):
        assert target in targets, f"{page}: {code}"
      for script in re.findall(r"(?:python|sbatch|apply -f) (\w[\w/.]+)", code):
        assert (ROOT / script).exists(), script
      for module in re.findall(r"python -m ([\w.]+)", code):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_promises_stand_with_their_tests():
  """In docs/promises.md, each sentence of the README and a test that exists."""
  page = (ROOT / "docs" / "promises.md").read_text().replace("\n> ", " ")
  readme = (ROOT / "README.md").read_text()
  section = readme.partition("## What is promised")[2].partition("\n## ")[0]
  promises = " ".join(section.partition("- ")[2].split()).replace(" - ", " ")
  sentences = re.findall(r"[A-Z].*?\.(?= [A-Z]|$)", promises)
  assert len(sentences) > 5
  for sentence in sentences:
    assert sentence in " ".join(page.split()), sentence
  for row in re.findall(r"^\| (?!what \|).*", page, re.M):
    assert "::" in row, row
  for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page):
    assert f"def {name}(" in (ROOT / file).read_text(), name
