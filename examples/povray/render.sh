#!/bin/sh
# Render a POV-Ray scene in tiles on every computer of the group, and put the picture together.
#
#   ./render.sh [SCENE] [WIDTH] [HEIGHT] [TILES_ACROSS] [TILES_DOWN]
#
# Every computer needs povray (Debian: apt install povray); the scene itself travels along.
set -eu

scene=$(realpath "${1:-/usr/share/doc/povray/examples/advanced/chess2.pov}")
width=${2:-640} height=${3:-480} across=${4:-10} down=${5:-10}

here=$(cd "$(dirname "$0")" && pwd)
name=$(basename "$scene" .pov)
mkdir -p "$name-tiles"

python3 "$here/tiles.py" grid "$width" "$height" "$across" "$down" > "$name-tiles/grid.tsv"

# One task for each line of grid.tsv, whose columns are called tile, left, right, top and bottom.  The tiles come back
# into the current directory.  POV-Ray talks a lot: --output none, and "p2pc logs last" has it all the same.
(
    cd "$name-tiles"
    p2pc run --name "$name" --header : --colsep '\t' --share "$(dirname "$scene")/./$name.pov" --fetch {tile}.png \
        --output none \
        povray "$name.pov" "+W$width" "+H$height" +SC{left} +EC{right} +SR{top} +ER{bottom} +O{tile}.png +FN8 \
        -A -D +WT1 \
        :::: grid.tsv
)

python3 "$here/tiles.py" join "$name-tiles" "$name.png"
echo "$name.png: $width x $height, from $((across * down)) tiles"
