cat "$SPOOL"/out/*.count
