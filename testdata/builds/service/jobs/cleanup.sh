find "$SPOOL/out" -name "*.count" -mtime +7 -delete
