#!/bin/sh
# render.sh FROM TO: every FROM/*.txt becomes TO/*.html, and TO/index.html links them all.
set -eu
mkdir -p "$2"
echo '<!doctype html><h1>Pages</h1><ul>' >"$2/index.html"
for file in "$1"/*.txt; do
  name=$(basename "$file" .txt)
  { echo "<!doctype html><title>$name</title><pre>"; sed 's/&/\&amp;/g; s/</\&lt;/g' "$file"; echo '</pre>'; } >"$2/$name.html"
  echo "<li><a href=\"$name.html\">$name</a> ($(wc -w <"$file") words)" >>"$2/index.html"
  echo "rendered $name"
done
echo '</ul>' >>"$2/index.html"
