#!/bin/sh
# SPDX-License-Identifier: MIT
# make demo: draws a picture with the default model, asks about it, and says how to open it.
cd "$(dirname "$0")/.." || exit 1
model=${JANUS_MODEL:-weights/tiny.gguf}
out=janus.png
if [ ! -f "$model" ]; then
    echo "$model is missing: name a model file that convert.py made, JANUS_MODEL=FILE make demo"
    exit 1
fi
run() {
    echo
    printf '$ %s' "$1"
    shift_done=""
    for argument in "$@"; do
        [ -z "$shift_done" ] && { shift_done=1; continue; }
        case $argument in *[!a-zA-Z0-9./_=-]*) printf ' "%s"' "$argument" ;; *) printf ' %s' "$argument" ;; esac
    done
    echo
    "$@" || exit 1
}
show=--show
[ -t 2 ] && [ "${TERM:-dumb}" != dumb ] || show=-q
run ./janus generate -m "$model" -o $out --seed 7 $show "a red circle"
run ./janus ask -m "$model" $out "What colour is the circle?"
run ./janus ask -m "$model" $out "How many trees are in this photo?"
echo
echo "The picture is $(pwd)/$out; open it with: $(command -v xdg-open >/dev/null && echo xdg-open || { command -v open >/dev/null && echo open || echo "your image viewer:"; }) $out"
