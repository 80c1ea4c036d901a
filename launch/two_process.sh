#!/usr/bin/env bash
# Trains in two processes of this machine, over gloo: launch/two_process.sh FLAGS
set -eu
python=${PYTHON:-.venv/bin/python}
port=$($python -c 'import socket as s; print(s.create_server(("", 0)).getsockname()[1])')
processes=()
trap 'kill -KILL "${processes[@]}" 2> /dev/null || true' EXIT
# Both save the same step, and end. A second Ctrl-C they take themselves.
trap 'kill -TERM "${processes[@]}" 2> /dev/null || true' INT TERM
for id in 0 1; do
  JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 $alexnet train \
    --coordinator=localhost:"$port" --num_processes=2 --process_id=$id "$@" \
    > >(trap '' INT; sed -u "s/^/$id| /") 2>&1 &
  processes+=($!)
done
# If one fails, the other ends too.
status=0
for process in "${processes[@]}"; do
  # A signal ends the wait, not the process.
  until wait "$process"; do
    kill -0 "$process" 2> /dev/null || { status=1; break; }
  done
done
exit $status
