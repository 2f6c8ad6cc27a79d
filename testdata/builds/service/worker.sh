#!/bin/bash
# Counts known words: every file in $SPOOL/in becomes $SPOOL/out/NAME.count. With --once it ends when there is no more.
set -eu
once=${1:-}
trap 'exit 0' INT TERM
while :; do
  for file in "$SPOOL"/in/*; do
    [[ -f $file ]] || continue
    text=$(<"$file")
    for plugin in /opt/worker/plugins/*.sed; do
      text=$(sed -f "$plugin" <<<"$text")
    done
    tr -cs '[:alpha:]' '\n' <<<"$text" | grep -cxFf /opt/worker/words.txt >"$SPOOL/out/${file##*/}.count" || true
    rm "$file"
  done
  date +%s >"$SPOOL/alive"
  [[ $once == --once ]] && exit 0
  sleep 1
done
