"""What every command does with bad input."""


def assert_refused(result, *words):
  """Exit code 1 and one line that holds the words; no traceback."""
  assert result.returncode == 1, result.stdout + result.stderr
  assert "Traceback" not in result.stderr
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error:"))
  for word in words:
    assert word in line
