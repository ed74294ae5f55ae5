#!/bin/sh
# SPDX-License-Identifier: MIT
# make platforms ROWS=bare: make demo and make test in empty systems of Debian, made by debootstrap with nothing in them but
# gcc, libc6-dev and make, for a user without root and then as root. A row has the columns of make platforms:
#   build    whether the compiler was without a warning in all that was built
#   tests    what make test counts; without root the C part alone, since Python is missing there
#   ids      whether a picture's ids are those of ./janus here
# Fails if a row fails. It needs root, debootstrap and 2 GB below WORK (build/bare), which KEEP=1 leaves there.
# ROWS=PATTERN, for grep -E, runs the rows whose target matches; MIRROR=ADDRESS is where the packages come from.
cd "$(dirname "$0")/../.." || exit 1
WORK=${WORK:-build/bare}
good=0
bad=0
left_out=0

print_row() { printf '| %-14s | %-31s | %-10s | %-10s | %6s | %-6s | %6s | %-7s |\n' "$@"; }
wanted() { echo "$1" | grep -qE -- "${ROWS:-}"; }

# Whatever happens, nothing stays mounted below WORK; what is mounted is never deleted.
clean_up() {
    for root in "$WORK"/debian-*; do
        if [ -d "$root/proc/1" ]; then umount "$root/proc" || continue; fi
        if [ -e "$root/dev/pts/ptmx" ]; then umount "$root/dev/pts" || continue; fi
        [ -n "$KEEP" ] || rm -rf --one-file-system "$root"
    done
}

# How this machine reaches its packages, for the new system: settings of apt and pip, and the certificates that it trusts,
# under a name of their own, since the new system's package of certificates replaces the usual file.
copy_settings() {
    apt-config dump 2>/dev/null | grep '^Acquire::' >"$1/etc/apt/apt.conf.d/90host"
    for path in /etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" "$HOME/.pip"; do
        [ -e "$path" ] && mkdir -p "$1${path%/*}" && cp -RL "$path" "$1${path%/*}/"
    done
    env | grep -E '^(PIP_|[a-zA-Z]*_(proxy|PROXY)=)' | sed "s/'/'\\\\''/g; s/=/='/; s/\$/'/; s/^/export /" >"$1/etc/host.env"
    for bundle in "$PIP_CERT" "$SSL_CERT_FILE" /etc/ssl/certs/ca-certificates.crt; do
        [ -f "$bundle" ] || continue
        cp -L "$bundle" "$1/etc/host-certificates.crt"
        echo "export PIP_CERT=/etc/host-certificates.crt SSL_CERT_FILE=/etc/host-certificates.crt" >>"$1/etc/host.env"
        break
    done
}

# make_root RELEASE ROOT: the empty system, without lists of packages.
make_root() {
    mirror=${MIRROR:-$(sh test/setup.sh mirror)}
    debootstrap --variant=minbase --include=gcc,libc6-dev,make "$1" "$2" ${mirror:+"$mirror"} >"$2.log" 2>&1 || return 1
    rm -rf "$2"/var/lib/apt/lists/* "$2"/var/cache/apt/*
    copy_settings "$2"
    chroot "$2" useradd -m janus >>"$2.log" 2>&1 && mount -t proc proc "$2/proc" &&
        mount -t devpts -o ptmxmode=666 devpts "$2/dev/pts"
}

# inside ROOT USER COMMAND: runs it in the system, with an environment of its own.
inside() {
    home=/root
    [ "$2" = root ] || home=/home/$2
    env -i HOME=$home PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        chroot --userspec="$2:$2" "$1" sh -c ". /etc/host.env; cd $home/janus; $3"
}

# row TARGET ROOT USER: a fresh clone, the two commands of README, and what came out.
row() {
    target=$1 root=$2 user=$3
    wanted "$target" || return 0
    home=$root/root
    [ "$user" = root ] || home=$root/home/$user
    log=$WORK/log
    git clone -q --depth 1 "file://$(pwd)" "$home/janus" >"$log" 2>&1
    chroot "$root" chown -R "$user:$user" "${home#"$root"}/janus"
    wrong=""
    inside "$root" "$user" "make demo" >>"$log" 2>&1 || wrong="make demo fails"
    grep -q "brought into build/stb" "$log" || wrong="${wrong:-the headers were there before}"
    inside "$root" "$user" "make test" >>"$log" 2>&1 || wrong="${wrong:-make test fails}"
    tests=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 -\2/p' "$log" | tail -1)
    tests=${tests% -0}
    if grep -q '^left out: the Python tests' "$log"; then python="left out"; else python=run; fi
    case $user,$python in root,run | janus,"left out") ;; *) wrong="${wrong:-the Python tests were $python}" ;; esac
    warnings=$(grep -cE '^([^ ]+\.[ch]:|[^ ]*cc1: |[^ ]*ld: ).*warning:' "$log")
    if [ "$warnings" = 0 ]; then build=clean; else build="$warnings warnings" wrong="${wrong:-warnings}"; fi
    kernels=$(inside "$root" "$user" "./janus info" 2>/dev/null | sed -n 's/^kernels *\([^,]*\).*/\1/p')
    ids=DIFFER
    [ "$(inside "$root" "$user" "$ids_command" 2>/dev/null)" = "$native" ] && ids=equal
    [ $ids = equal ] && [ -n "$tests" ] || wrong="${wrong:-results}"
    compiler="gcc $(inside "$root" "$user" "gcc -dumpfullversion")"
    print_row "$compiler" "$target" "${kernels:-none}" "$build" "${tests:-none}" "$ids" - -
    if [ -z "$wrong" ]; then
        good=$((good + 1))
    else
        bad=$((bad + 1))
        mv "$log" "$WORK/FAILED.$bad"
        echo "  $wrong: $WORK/FAILED.$bad"
    fi
}

for name in "Debian 12, bare, no root" "Debian 12, bare, root" "Debian 13, bare, no root" "Debian 13, bare, root" ""; do
    [ -n "$name" ] || exit 0
    wanted "$name" && break
done
ids_command="./janus encode -q --isa plain -m weights/tiny.gguf -i weights/samples.png"
native=$($ids_command) || exit 1
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
rm -f "$WORK"/FAILED.*
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
echo "$(date +%Y-%m-%d), $(uname -s) $(uname -m), fresh systems with gcc, libc6-dev and make"
echo
print_row compiler target kernels build tests ids pixels threads
print_row --- --- --- --- --- --- --- ---
for system in "12 bookworm" "13 trixie"; do
    release=${system#* }
    name="Debian ${system% *}, bare"
    wanted "$name, no root" || wanted "$name, root" || continue
    if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
        print_row gcc "$name" "needs root and debootstrap" "" "" "" "" ""
        left_out=$((left_out + 2))
        continue
    fi
    KEEP="" clean_up
    if make_root "$release" "$WORK/debian-$release"; then
        row "$name, no root" "$WORK/debian-$release" janus
        row "$name, root" "$WORK/debian-$release" root
    else
        echo "  $name cannot be made: $WORK/debian-$release.log"
        bad=$((bad + 1))
    fi
done
echo
echo "$left_out rows left out"
echo "$good passed, $bad failed"
[ $bad = 0 ]
