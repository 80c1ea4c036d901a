#!/usr/bin/env bash
# Trains in two processes of this machine, over gloo: launch/two_process.sh FLAGS
# Written for bash 3.2 too, which macOS has.
set -eu
python=${PYTHON:-.venv/bin/python}
port=$("$python" -c 'import socket as s; print(s.create_server(("localhost", 0)).getsockname()[1])')
processes=
trap 'kill -KILL $processes 2> /dev/null || true' EXIT
# Both processes then save the same step and end; a second Ctrl-C reaches them.
trap 'kill -TERM $processes 2> /dev/null || true' INT TERM
label() {
  trap '' INT
  while IFS= read -r line; do printf '%s| %s\n' "$1" "$line"; done
}
for id in 0 1; do
  # No other machine can connect.
  JAX_COORDINATOR_BIND_ADDRESS=localhost:$port \
    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 "$python" -m alexnet_jax train \
    --coordinator=localhost:"$port" --num_processes=2 --process_id=$id "$@" \
    > >(label $id) 2>&1 &
  processes="$processes $!"
done
# jax ends a process when the other one fails.
status=0
for process in $processes; do
  # A signal to this script ends the wait, but not the process.
  until wait "$process"; do
    kill -0 "$process" 2> /dev/null || { status=1; break; }
  done
done
exit $status
