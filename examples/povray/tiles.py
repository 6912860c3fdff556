#!/usr/bin/env python3
"""Cut a picture into tiles for POV-Ray, and put the rendered tiles together.

    python3 tiles.py grid 640 480 10 10 > tiles/grid.tsv
    python3 tiles.py join tiles picture.png
    python3 tiles.py compare picture.png whole.png

POV-Ray renders a part of a picture with +SC +EC +SR +ER (first and last column and row, counted from 1) and writes an
image of the full size in which everything else is black.  The standard library is all that this needs: a PNG file is
a few numbers and rows of bytes under zlib.
"""

from __future__ import annotations

import argparse
import csv
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB = 2
SAMPLES = 3


class Tile(NamedTuple):
    """A part of the picture: its first and last column and row, counted from 1, both inclusive."""

    tile: str
    left: int
    right: int
    top: int
    bottom: int


def cut(width: int, height: int, across: int, down: int) -> Iterator[Tile]:
    """Yield the tiles of a picture, row by row; their sizes differ by one pixel at most."""
    for row in range(down):
        for column in range(across):
            yield Tile(
                f"r{row:02}c{column:02}",
                column * width // across + 1,
                (column + 1) * width // across,
                row * height // down + 1,
                (row + 1) * height // down,
            )


# --- PNG ----------------------------------------------------------------------------------------------------------


def read_png(path: Path) -> tuple[int, int, bytes]:
    """Return width, height and the filtered rows (a byte that names the filter, then the samples) of an RGB picture.

    Raises:
        ValueError: the file is no PNG with 8-bit RGB and without interlacing, or it is damaged.
    """
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path} is no PNG file")
    header, packed, position = b"", b"", len(SIGNATURE)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if zlib.crc32(kind + content) != checksum:
            raise ValueError(f"{path} is damaged")
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            packed += content
        position += 12 + length
    width, height, depth, color, _compression, _filter, interlace = struct.unpack(">IIBBBBB", header)
    if (depth, color, interlace) != (8, RGB, 0):
        raise ValueError(f"{path} is not 8-bit RGB")
    return width, height, zlib.decompress(packed)


def unfilter(kind: int, row: bytearray, above: bytes) -> None:
    """Turn a filtered row into samples, in place.

    Source: PNG specification (ISO/IEC 15948), clause 9.
    """
    if kind == 1:
        for x in range(SAMPLES, len(row)):
            row[x] = (row[x] + row[x - SAMPLES]) & 255
    elif kind == 2:
        for x, up in enumerate(above):
            row[x] = (row[x] + up) & 255
    elif kind == 3:
        for x, up in enumerate(above):
            left = row[x - SAMPLES] if x >= SAMPLES else 0
            row[x] = (row[x] + (left + up) // 2) & 255
    elif kind == 4:
        for x, up in enumerate(above):
            left, corner = (row[x - SAMPLES], above[x - SAMPLES]) if x >= SAMPLES else (0, 0)
            by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            nearest = left if by_left <= by_up and by_left <= by_corner else up if by_up <= by_corner else corner
            row[x] = (row[x] + nearest) & 255


def samples(path: Path, tile: Tile | None = None) -> tuple[int, int, list[bytes]]:
    """Return width, height and the rows of samples: of a whole picture, or of one tile in a black one.

    What surrounds a tile is black, that is zero, so its rows can be read without the rest of the picture.
    """
    width, height, data = read_png(path)
    tile = tile or Tile("", 1, width, 1, height)
    stride = 1 + width * SAMPLES
    first, last = (tile.left - 1) * SAMPLES, tile.right * SAMPLES
    above = bytes(last - first)
    rows = []
    for y in range(tile.top - 1, tile.bottom):
        start = y * stride
        row = bytearray(data[start + 1 + first : start + 1 + last])
        unfilter(data[start], row, above)
        above = bytes(row)
        rows.append(above)
    return width, height, rows


def write_png(path: Path, width: int, height: int, rows: list[bytearray]) -> None:
    """Write an RGB picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    path.write_bytes(SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


# --- commands -----------------------------------------------------------------------------------------------------


def read_grid(path: Path) -> list[Tile]:
    with path.open(newline="") as lines:
        return [
            Tile(line["tile"], *(int(line[name]) for name in Tile._fields[1:]))
            for line in csv.DictReader(lines, delimiter="\t")
        ]


def join(directory: Path, target: Path) -> None:
    """Put the tiles of a directory with its grid.tsv together.

    Raises:
        ValueError: a tile does not fit.
    """
    tiles = read_grid(directory / "grid.tsv")
    width, height = max(tile.right for tile in tiles), max(tile.bottom for tile in tiles)
    picture = [bytearray(width * SAMPLES) for _ in range(height)]
    for tile in tiles:
        path = directory / f"{tile.tile}.png"
        tile_width, tile_height, rows = samples(path, tile)
        if (tile_width, tile_height) != (width, height):
            raise ValueError(f"{path} is part of a picture of {tile_width} x {tile_height}, not {width} x {height}")
        for row, y in zip(rows, range(tile.top - 1, tile.bottom), strict=True):
            picture[y][(tile.left - 1) * SAMPLES : tile.right * SAMPLES] = row
    write_png(target, width, height, picture)


def difference(one: Path, other: Path) -> str:
    """Return how two pictures differ; empty when every pixel is the same."""
    width, height, rows = samples(one)
    other_width, other_height, other_rows = samples(other)
    if (width, height) != (other_width, other_height):
        return f"{one} is {width} x {height}, {other} is {other_width} x {other_height}"
    count = sum(
        row[x : x + SAMPLES] != other_row[x : x + SAMPLES]
        for row, other_row in zip(rows, other_rows, strict=True)
        if row != other_row
        for x in range(0, len(row), SAMPLES)
    )
    return f"{count} of {width * height} pixels differ" if count else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tiles of a POV-Ray picture.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    grid = verbs.add_parser("grid", help="print the tiles of a picture, tab-separated, with a header")
    for name in ("width", "height", "across", "down"):
        grid.add_argument(name, type=int)
    joining = verbs.add_parser("join", help="make one picture of rendered tiles")
    joining.add_argument("directory", type=Path, help="holds grid.tsv and the tiles")
    joining.add_argument("picture", type=Path)
    comparing = verbs.add_parser("compare", help="say whether two pictures have the same pixels")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "grid":
            if not (0 < arguments.across <= arguments.width and 0 < arguments.down <= arguments.height):
                raise ValueError("a tile is at least one pixel")
            print(*Tile._fields, sep="\t")
            for tile in cut(arguments.width, arguments.height, arguments.across, arguments.down):
                print(*tile, sep="\t")
        elif arguments.verb == "join":
            join(arguments.directory, arguments.picture)
        elif found := difference(arguments.one, arguments.other):
            sys.exit(f"tiles.py: {found}")
        else:
            print("the same, pixel by pixel")
    except (OSError, ValueError) as error:
        sys.exit(f"tiles.py: {error}")


if __name__ == "__main__":
    main()
