"""Processes that watch one another: real ones, over sockets, without jax."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import assert_refused

from alexnet_jax.runtime import peers

ROOT = Path(__file__).parents[2]
MEMBER = """
import os, signal, sys, time
from alexnet_jax import errors, peers
port, count, me, script = sys.argv[1:]
address = f"localhost:{port}"
group = peers.Group(address, int(count), int(me), "start all.", None)
try:
  connections = peers.meet(group, 20)
  print("met", flush=True)
  with peers.watching(connections, int(count)):
    exec(script)
  print("left", flush=True)
except errors.InputError as e:
  print(f"error: {e}", file=sys.stderr)
  sys.exit(1)
"""
LONG = "time.sleep(60)"
DEAD = "os.kill(os.getpid(), signal.SIGKILL)"


def free_port():
  with socket.create_server(("", 0)) as free:
    return free.getsockname()[1]


def start(script, me, count, port):
  words = [str(port), str(count), str(me), script]
  return subprocess.Popen(
    [sys.executable, "-c", MEMBER, *words],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_all(*scripts):
  """Starts one process for each script, to be run while it is watched."""
  port = free_port()
  return [start(s, me, len(scripts), port) for me, s in enumerate(scripts)]


def finish(running):
  try:
    said = [process.communicate(timeout=60) for process in running]
  finally:
    for process in running:
      process.kill()
  return [
    subprocess.CompletedProcess(process.args, process.returncode, *each)
    for process, each in zip(running, said, strict=True)
  ]


def wait_until_met(running):
  for process in running:
    assert process.stdout.readline() == "met\n"


@pytest.mark.parametrize(("count", "dead"), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_all_end_soon_after_one_has_died(count, dead):
  """Workers are connected to process 0 alone, and still say who it was."""
  scripts = [LONG] * count
  scripts[dead] = DEAD
  started = time.monotonic()
  results = finish(start_all(*scripts))
  assert time.monotonic() - started < 15
  assert results.pop(dead).returncode == -signal.SIGKILL
  for result in results:
    assert_refused(
      result, f"process {dead} of {count} was lost", "same command"
    )


@pytest.mark.parametrize("bad", [0, 2])
def test_bad_input_of_one_ends_all_by_its_reason(bad):
  scripts = [LONG] * 3
  scripts[bad] = "raise errors.InputError('image 7 is damaged.')"
  results = finish(start_all(*scripts))
  assert_refused(results.pop(bad), "image 7 is damaged.")
  for result in results:
    assert_refused(result, f"process {bad}: image 7 is damaged.")


def test_bad_input_of_all_is_told_once_by_each():
  """None takes over what it was about to say itself."""
  slow = "time.sleep(2); raise errors.InputError('no data.')"
  quick = "raise errors.InputError('no data.')"
  for result in finish(start_all(slow, quick, slow)):
    assert_refused(result, "error: no data.")


def test_an_error_of_a_collective_gives_way_to_its_cause():
  """gloo's, in a process whose peer ended for a reason of its own."""
  broken = "time.sleep(1); raise RuntimeError('connection reset by peer')"
  bad = "raise errors.InputError('image 7 is damaged.')"
  first, _ = finish(start_all(broken, bad))
  assert_refused(first, "process 1: image 7 is damaged.")


@pytest.mark.parametrize("script", ["sys.exit(143)", "raise KeyboardInterrupt"])
def test_one_that_is_ended_early_ends_the_others(script):
  first, _, third = finish(start_all(LONG, script, LONG))
  assert_refused(first, "process 1: ended by")
  assert_refused(third, "process 1: ended by")


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_none_leaves_before_all_are_done(slow):
  """Else jax, which they take leave of too, gives up one that is slower."""
  scripts = ["pass"] * 3
  scripts[slow] = "time.sleep(4)"
  running = start_all(*scripts)
  wait_until_met(running)
  started = time.monotonic()
  while running[slow].poll() is None:
    left = [process for process in running if process.poll() is not None]
    assert not left or time.monotonic() - started > 3
    time.sleep(0.05)
  for result in finish(running):
    assert (result.returncode, result.stderr) == (0, "")


def test_one_that_dies_is_missed_by_those_who_wait_to_leave():
  for result in finish(start_all("pass", "pass", f"time.sleep(2); {DEAD}"))[:2]:
    assert_refused(result, "process 2 of 3 was lost")


def come(port, me, count):
  """Joins the others of a run as one of them, by hand."""
  deadline = time.monotonic() + 60
  while True:
    try:
      connection = socket.create_connection(("localhost", port), timeout=20)
      break
    except ConnectionRefusedError:
      assert time.monotonic() < deadline
      time.sleep(0.1)
  connection.sendall(json.dumps([me, count]).encode() + b"\n")
  return connection


@pytest.mark.skipif(sys.platform != "linux", reason="sets TCP_QUICKACK")
def test_a_loss_is_told_to_one_that_is_slow_to_acknowledge():
  """TCP holds a second short message back, and drops it with the process."""
  port = free_port()
  first = start("pass", 0, 3, port)
  with come(port, 1, 3) as slow, come(port, 2, 3) as dying:
    for connection in (slow, dying):
      assert connection.recv(3) == b'""\n'
    slow.sendall(b'{"left": null}\n')
    for _ in range(3):
      slow.sendall(b"{}\n")
      slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
      assert slow.recv(3) == b"{}\n"
    dying.close()
    with slow.makefile("rb") as lines:
      assert any(b"process 2 of 3 was lost" in line for line in lines)
  (result,) = finish([first])
  assert_refused(result, "process 2 of 3 was lost")


def test_a_normal_end_is_without_errors():
  for _ in range(5):
    for result in finish(start_all(*["pass"] * 4)):
      assert (result.returncode, result.stderr) == (0, "")


def test_a_process_without_jax_yet_is_watched_too():
  """One that dies while the others wait for it in jax, up to --timeout_s."""
  port = free_port()
  command = [sys.executable, "-m", "alexnet_jax", "train", "--num_processes=2"]
  command += [f"--coordinator=localhost:{port}", "--process_id=0"]
  first = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
  with come(port, 1, 2) as other:
    assert other.recv(3) == b'""\n'
    time.sleep(1)
  started = time.monotonic()
  (result,) = finish([first])
  assert time.monotonic() - started < 10
  assert_refused(result, "process 1 of 2 was lost")


@pytest.mark.slow
def test_one_that_is_silent_is_given_up():
  """And when it goes on it ends too, by what it was told meanwhile.

  Of two groups, process 0 in one and a worker in the other.
  """
  groups = [start_all(LONG, LONG, LONG) for _ in range(2)]
  for running in groups:
    wait_until_met(running)
  started = time.monotonic()
  for stopped, running in enumerate(groups):
    running[stopped].send_signal(signal.SIGSTOP)
  for stopped, running in enumerate(groups):
    held = running.pop(stopped)
    results = finish(running)
    assert peers.SILENCE_S - 1 < time.monotonic() - started < 30
    held.send_signal(signal.SIGCONT)
    for result in [*results, *finish([held])]:
      words = f"process {stopped} of 3 was silent for {peers.SILENCE_S} s"
      assert_refused(result, words)
