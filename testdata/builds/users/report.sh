#!/bin/sh
# Sums up a stock list: report.sh FILE, lines of "item,count,price in cents".
set -eu
awk -F, 'NR > 1 { n += $2; cents += $2 * $3 } END { printf "%d items worth %.2f\n", n, cents / 100 }' "$1"
