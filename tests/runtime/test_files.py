"""Files that others give: of any kind and any size, and no read waits."""

import os
import socket

import pytest

from alexnet_jax.runtime import files


def test_a_regular_file_is_read_whole(tmp_path):
  file = tmp_path / "file"
  file.write_bytes(b"\0\xff\r\n" * 7)
  (tmp_path / "link").symlink_to(file)
  for path in (file, str(file), tmp_path / "link"):
    assert files.read(path, 28) == b"\0\xff\r\n" * 7
  with pytest.raises(OSError, match="it has 28 bytes, and the limit is 27"):
    files.read(file, 27)


def test_a_file_that_claims_a_terabyte_is_not_read(tmp_path):
  file = tmp_path / "file"
  file.touch()
  os.truncate(file, 2**40)
  with pytest.raises(OSError, match="the limit is"):
    files.read(file)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
  path = tmp_path / "path"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "socket":
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(str(path))
  elif kind == "folder":
    path.mkdir()
  else:
    path.symlink_to("/dev/zero")
  with pytest.raises(OSError) as error:  # noqa: PT011
    files.read(path)
  assert error.value.strerror
