#!/bin/bash
# Prepares the spool, then becomes the command, so that the worker is process 1 and gets the signals.
set -eu
mkdir -p "$SPOOL"/{in,out}
if [[ ${1:-} == -* ]]; then
  set -- worker.sh "$@"
fi
exec "$@"
