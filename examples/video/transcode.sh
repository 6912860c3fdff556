#!/bin/sh
# Encode a video anew in chunks on every computer of the group, and put them together.
#
#   ./transcode.sh INPUT OUTPUT [SECONDS_A_CHUNK]
#
# Every computer needs ffmpeg (Debian: apt install ffmpeg); the chunks travel there and back.
set -eu

input=$(realpath "$1") output=$(realpath "$2") seconds=${3:-20}

chunks=$(mktemp -d "$output-chunks.XXXXXX")  # no gap left to fill: mktemp makes a name of these six
cd "$chunks"

# Cut where a key frame is, without encoding anything.
ffmpeg -v error -nostdin -i "$input" -map 0:v:0 -c copy -f segment -segment_time "$seconds" -reset_timestamps 1 part-%05d.mkv

# One task for each chunk, which comes back into this directory.  One thread each: p2pc runs as many as there are cores.
p2pc run --name "$(basename "$output")" --send {} --fetch new-{} \
    ffmpeg -v error -nostdin -i {} -c:v libx264 -preset medium -crf 23 -threads 1 new-{} ::: part-*.mkv

# The sound is encoded as a whole, here: a cut in it would be heard.
for part in part-*.mkv; do echo "file 'new-$part'"; done > list.txt
ffmpeg -v error -nostdin -y -f concat -i list.txt -i "$input" -map 0:v -map '1:a?' -c:v copy "$output"
echo "$output: from $(wc -l < list.txt) chunks"
rm -r "$chunks"
