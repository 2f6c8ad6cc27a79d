#!/bin/bash
# Healthy when the worker has been round in the last ten seconds.
(( $(date +%s) - $(cat "$SPOOL/alive" 2>/dev/null || echo 0) < 10 ))
