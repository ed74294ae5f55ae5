#!/bin/sh
# SPDX-License-Identifier: MIT
# What a machine may lack: the stb headers, which every build finds or brings by itself, and the packages of make deps.
#   setup.sh flags              prints the compiler's flags for stb_image.h and stb_image_write.h
#   setup.sh install            installs a C compiler, make, the stb headers and Python's venv
#   setup.sh release NAME DIR   puts the stb headers of the Debian release NAME into DIR/stb
#   setup.sh pinned DIR         whether the headers in DIR are those of the commit below
#   setup.sh mirror             prints the address of Debian's packages that /etc/apt names
# The environment holds the Makefile's CC, CFLAGS, STB, FETCH and STB_URL. Exit status 2: the headers are missing.
#
# The headers are looked for where the system has them, then in build/stb. If they are nowhere, the distribution's
# package is unpacked into build/stb, which needs no root; else both files are downloaded at one commit, and kept only if
# their SHA-256 is the one below. FETCH=no forbids both.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
COMMIT=31c1ad37456438565541f4919958214b6e762fb4
STB_URL=${STB_URL:-https://raw.githubusercontent.com/nothings/stb/$COMMIT}
SUM_IMAGE=594c2fe35d49488b4382dbfaec8f98366defca819d916ac95becf3e75f4200b3
SUM_IMAGE_WRITE=cbd5f0ad7a9cf4468affb36354a1d2338034f2c12473cf1a8e32053cb6914a05

say() { echo "$@" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# Everything unfinished lies in a folder of this run, so that make -j may run several at once.
part=build/setup.$$
work=$(pwd)/$part
locked=""
clean_up() { rm -rf "$work"; [ -z "$locked" ] || rm -rf build/stb.lock; }
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work" || exit 1

# ---- What make deps installs ----

# The one command that installs everything on this system.
deps_command() {
    msys=$MINGW_PACKAGE_PREFIX
    if have apt-get; then
        echo "apt-get install -y --no-install-recommends gcc make libc6-dev libstb-dev python3-venv pkg-config"
    elif have dnf; then echo "dnf install -y gcc make glibc-devel stb-devel python3"
    elif have apk; then echo "apk add gcc make musl-dev stb python3"
    elif have pacman && [ -n "$msys" ]; then echo "pacman -S --needed --noconfirm make $msys-gcc $msys-stb $msys-python"
    elif have pacman; then echo "pacman -S --needed --noconfirm gcc make stb python"
    elif have brew; then echo "brew install stb python3"
    elif have pkg; then echo "pkg install -y stb python3"
    fi
}

# What stands before a command that needs root: nothing for root, and where packages are the user's own.
as_root() {
    case $(id -u),$1 in 0,* | *,brew* | *mingw*) return ;; esac
    if have sudo || ! have doas; then echo "sudo "; else echo "doas "; fi
}

install() {
    command=$(deps_command)
    [ -n "$command" ] || { say "no known package manager: install a C compiler, make and Python 3 by hand"; exit 1; }
    sudo=$(as_root "$command")
    if [ -n "$sudo" ] && ! have $sudo; then
        say "this needs root, and there is no sudo. As root:"
        say "    $command"
        exit 1
    fi
    if have apt-get; then $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q; fi
    echo "$sudo$command"
    $sudo env DEBIAN_FRONTEND=noninteractive $command
}

# Says what is missing and how it is installed.
missing() {
    command=$(deps_command)
    say "$1 missing. Install them with:"
    say "    ${command:+$(as_root "$command")}${command:-(no known package manager: see README)}"
}

# ---- Finding the headers ----

# Whether both headers compile with these flags, included as janus.c includes them.
fits() { $CC $CFLAGS $1 -c "$work/probe.c" -o "$work/probe.o" >/dev/null 2>&1; }

cat >"$work/probe.c" <<END
#ifdef JANUS_STB_FLAT
#include <stb_image.h>
#include <stb_image_write.h>
#else
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#endif
void (*probe[2])(void) = {(void (*)(void))stbi_load_from_memory, (void (*)(void))stbi_write_png_to_func};
END

# Sets $flags to those of the first place that has the headers. They lie there in a folder stb, or flat.
find_installed() {
    for dir in "" /usr/local/include /opt/homebrew/include /opt/local/include; do
        for layout in "" -DJANUS_STB_FLAT; do
            flags="${dir:+-isystem $dir }$layout"
            fits "$flags" && return
        done
    done
    flags="$(pkg-config --cflags stb 2>/dev/null | sed 's/-I *//g; s/[^ ][^ ]*/-isystem &/g') -DJANUS_STB_FLAT"
    fits "$flags" && return
    flags="-isystem build"
    fits "$flags"
}

# Sets $flags for the folder that STB names. An -isystem folder without the files would pass the search on to the next.
find_named() {
    flags=""
    [ -f "$STB/stb/stb_image.h" ] && [ -f "$STB/stb/stb_image_write.h" ] && flags="-isystem $STB"
    [ -f "$STB/stb_image.h" ] && [ -f "$STB/stb_image_write.h" ] && flags="-isystem $STB -DJANUS_STB_FLAT"
    [ -n "$flags" ] && fits "$flags"
}

# ---- Bringing them: each of these fills $work/got, and fails where it has no package or no tool ----

apt() { apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"; }

# apt with lists of its own, which needs no root and changes nothing of the system.
private_apt() {
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
    : >"$work/apt/status"
    apt -o "Dir::State=$work/apt/state" -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" \
        -o Acquire::Languages=none "$@"
}

from_apt() {
    have apt-get && have dpkg-deb || return 1
    # The system's lists may be empty, or older than its mirror.
    (
        cd "$work/got" || exit 1
        apt download libstb-dev && exit
        private_apt update
        private_apt download libstb-dev
    ) || return 1
    dpkg-deb -x "$work"/got/*.deb "$work/got"
}

from_dnf() {
    have dnf && have cpio && dnf -q download --destdir "$work/got" stb_image-devel stb_image_write-devel || return 1
    for package in "$work"/got/*.rpm; do rpm2cpio "$package" | (cd "$work/got" && cpio -idm) || return 1; done
}

from_apk() { have apk && apk fetch --no-cache -o "$work/got" stb && tar -xzf "$work"/got/*.apk -C "$work/got"; }

# pacman downloads for root alone (on MSYS2 for everyone); a database of its own leaves the system's as old as it is.
from_pacman() {
    have pacman && mkdir "$work/got/db" || return 1
    name=${MINGW_PACKAGE_PREFIX:+$MINGW_PACKAGE_PREFIX-}stb
    pacman -Syw --noconfirm --dbpath "$work/got/db" --cachedir "$work/got" "$name" &&
        for package in "$work"/got/*.pkg.tar.*[!g]; do bsdtar -xf "$package" -C "$work/got"; done
}

from_brew() { have brew && HOMEBREW_NO_AUTO_UPDATE=1 brew fetch stb && tar -xzf "$(brew --cache stb)" -C "$work/got"; }

from_pkg() {
    [ "$(uname)" = FreeBSD ] && pkg -N && pkg fetch -y -o "$work/got" stb &&
        find "$work/got" -name 'stb-*.pkg' -exec tar -xf {} -C "$work/got" \;
}

# download URL FILE. Not every busybox's wget knows -T.
download() {
    timeout=$(wget --help 2>&1 | grep -q -e '-T' && echo "-T 20")
    { have curl && curl -fsSL --connect-timeout 20 -o "$2" "$1"; } || { have wget && wget -q $timeout -O "$2" "$1"; } ||
        { have fetch && fetch -q -T 20 -o "$2" "$1"; }
}

# The file's SHA-256; nothing where no tool computes it.
sha256() {
    if have sha256sum; then sha256sum <"$1"; elif have shasum; then shasum -a 256 <"$1"
    elif have openssl; then openssl dgst -sha256 -r <"$1"; elif have sha256; then sha256 -q <"$1"
    fi | sed 's/[^0-9a-f].*//'
}

# download_checked NAME SUM: only the file that was meant.
download_checked() {
    download "$STB_URL/$1" "$work/got/$1" || { say "$STB_URL/$1 cannot be downloaded"; return 1; }
    sum=$(sha256 "$work/got/$1")
    [ "$sum" = "$2" ] && return
    if [ -n "$sum" ]; then say "refused: $STB_URL/$1 has the SHA-256 $sum instead of $2"
    else say "refused: nothing here computes a SHA-256 (sha256sum, shasum, openssl or sha256) to check $STB_URL/$1 with"
    fi
    return 1
}

from_commit() {
    download_checked stb_image.h $SUM_IMAGE && download_checked stb_image_write.h $SUM_IMAGE_WRITE
}

# keep DIR: takes both headers out of what was unpacked into DIR/stb, under their names only once they compile.
keep() {
    rm -rf "$work/new"
    mkdir -p "$work/new/stb" "$1/stb"
    for name in stb_image.h stb_image_write.h; do
        found=$(find "$work/got" -name $name -type f | sed 1q)
        [ -n "$found" ] && cp "$found" "$work/new/stb/$name" || return 1
    done
    fits "-isystem $part/new" || return 1
    mv -f "$work/new/stb/stb_image.h" "$work/new/stb/stb_image_write.h" "$1/stb/"
}

bring() {
    say "The stb headers are brought into build/stb (FETCH=no forbids it)"
    for source in from_apt from_dnf from_apk from_pacman from_brew from_pkg from_commit; do
        rm -rf "$work/got"
        mkdir "$work/got"
        if [ $source = from_commit ]; then from_commit; else $source >"$work/log" 2>&1; fi && keep build && return
    done
    return 1
}

# With make -j one brings and the others wait for it; a lock whose owner was killed counts for nothing.
bring_once() {
    until mkdir build/stb.lock 2>/dev/null; do
        owner=$(cat build/stb.lock/owner 2>/dev/null)
        sleep 1
        if [ ! -d build/stb.lock ]; then fits "-isystem build"; return; fi
        [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null && rm -rf build/stb.lock
    done
    locked=1
    echo $$ >build/stb.lock/owner
    bring
}

# Prints what was found and notes it for the next target, with the compiler that it was found for.
found() {
    printf '%s\n' "$CC $CFLAGS" "$1" >"$work/flags" && mv -f "$work/flags" build/stb.flags
    echo "$1"
    exit 0
}

print_flags() {
    if [ -z "$STB" ] && { IFS= read -r for_compiler && IFS= read -r flags; } 2>/dev/null <build/stb.flags &&
        [ "$for_compiler" = "$CC $CFLAGS" ] && fits "$flags"; then
        echo "$flags"
        exit 0
    fi
    echo '#include <stdio.h>' >"$work/hello.c"
    if ! $CC $CFLAGS -c "$work/hello.c" -o "$work/hello.o" 2>"$work/log"; then
        cat "$work/log" >&2
        missing "The C compiler ($CC) or the headers of libc are"
        exit 2
    fi
    if [ -n "$STB" ]; then
        find_named && { echo "$flags"; exit 0; }
        say "STB=$STB: that folder has no stb_image.h and stb_image_write.h that $CC compiles"
        exit 2
    fi
    find_installed && found "$flags"
    [ "$FETCH" != no ] && bring_once && found "-isystem build"
    missing "The stb headers are"
    say "or name the folder that holds stb_image.h: make STB=DIR"
    exit 2
}

# ---- The headers of another Debian release, from the mirror of this one ----

# mirror: the address of Debian's packages that /etc/apt names.
mirror() {
    apt-get indextargets --format '$(LABEL) $(ORIGIN) $(REPO_URI)' 2>/dev/null | sed -n 's/^Debian Debian //p' | sed 1q
}

release() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$work/got"
    address=${MIRROR:-$(mirror)}
    echo "deb [signed-by=$keyring] ${address:-http://deb.debian.org/debian} $1 main" >"$work/sources.list"
    for command in update "download libstb-dev"; do
        (cd "$work/got" && private_apt -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::Etc::preferencesparts=/dev/null $command) >>"$work/log" 2>&1
    done
    dpkg-deb -x "$work"/got/*.deb "$work/got" 2>>"$work/log" && keep "$2" && return
    cat "$work/log" >&2
    return 1
}

case $1 in
flags) print_flags ;;
install) install ;;
release) release "$2" "$3" ;;
mirror) mirror ;;
pinned) [ "$(sha256 "$2/stb_image.h")" = $SUM_IMAGE ] && [ "$(sha256 "$2/stb_image_write.h")" = $SUM_IMAGE_WRITE ] ;;
*) say "usage: setup.sh flags|install|release NAME DIR|pinned DIR|mirror"; exit 1 ;;
esac
