#!/bin/sh
# Compress every file below a directory on every computer of the group:  ./compress.sh OUT [DIR]
#
# FILE of DIR comes back as OUT/FILE.gz.
set -eu
mkdir -p "$1"
out=$(realpath "$1")
cd "${2:-$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')}"
tree=$PWD

# "DIR/./FILE" is sent as "FILE"; what is fetched comes into the directory where p2pc runs.
find . -type f -size -1024k -not -path '*/site-packages/*' -not -path '*/__pycache__/*' -print0 |
    (cd "$out" && p2pc run -0 --send "$tree/./{}" --fetch {}.gz gzip -9 -n {})
