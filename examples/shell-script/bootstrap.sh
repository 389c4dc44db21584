#!/bin/bash
# A tutorial for one user: download it, unpack it, and only then put it in its place.
#
# Run by the role "script": as the user, in the user's directory, with the username as the first argument. It exits with
# 0 only if it is done. Stopped half-way it is run again, so it begins by removing what it left then.

set -euo pipefail

URL=https://github.com/jakevdp/PythonDataScienceHandbook/archive/master.zip
NEW=.tutorials.new

echo "bootstrap process running for user $1 ..."
if [ -e tutorials ]; then
    echo "... they have tutorials already: left as they are"
    exit 0
fi

rm -rf "$NEW"
mkdir "$NEW"
wget --no-verbose --timeout=20 --tries=2 --output-document="$NEW/master.zip" "$URL"
unzip -q "$NEW/master.zip" -d "$NEW/tutorials"
mv --no-target-directory "$NEW/tutorials" tutorials
rm -rf "$NEW"
