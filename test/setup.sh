#!/bin/sh
# SPDX-License-Identifier: MIT
# What a machine may lack: the stb headers, which every build finds or fetches by itself, and the packages of make deps.
#   setup.sh flags              prints the compiler's flags for stb_image.h (2.28 or newer) and stb_image_write.h
#   setup.sh install [WHAT]     installs packages: build (the default), fuzz, check, machines, web, analyse or platforms
#   setup.sh release NAME DIR   puts the stb headers of the Debian release NAME into DIR/stb
#   setup.sh mirror             prints the address of Debian's packages that /etc/apt names
# The environment holds the Makefile's CC, CFLAGS, STB, FETCH and STB_URL. Exit status 2: the headers are missing.
#
# The headers are searched for in the system's folders, then in build/stb. If none are new enough, build/stb gets them: on
# Debian from the package of Debian 13, unpacked without root and checked by apt's signatures; elsewhere both files are
# downloaded at one commit and checked by SHA-256. FETCH=no forbids both.
cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
COMMIT=31c1ad37456438565541f4919958214b6e762fb4
STB_URL=${STB_URL:-https://raw.githubusercontent.com/nothings/stb/$COMMIT}
SUM_IMAGE=594c2fe35d49488b4382dbfaec8f98366defca819d916ac95becf3e75f4200b3
SUM_IMAGE_WRITE=cbd5f0ad7a9cf4468affb36354a1d2338034f2c12473cf1a8e32053cb6914a05

say() { echo "$@" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# Everything unfinished lies in a folder of this run, so that several may run at once.
part=build/setup.$$
work=$(pwd)/$part
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work" || exit 1

# ---- make deps ----

# gcc-multilib would bring -m32 but excludes the cross compilers; its two pieces do not.
CROSS="alpha-linux-gnu:alpha aarch64-linux-gnu:arm64 arm-linux-gnueabi:armel arm-linux-gnueabihf:armhf hppa-linux-gnu:hppa
    m68k-linux-gnu:m68k mips-linux-gnu:mips mips64-linux-gnuabi64:mips64 mips64el-linux-gnuabi64:mips64el mipsel-linux-gnu:mipsel
    powerpc64-linux-gnu:ppc64 powerpc64le-linux-gnu:ppc64el riscv64-linux-gnu:riscv64 s390x-linux-gnu:s390x sh4-linux-gnu:sh4
    sparc64-linux-gnu:sparc64"

# The one command that installs what a build and the tests need on this system, or on Debian alone the packages of WHAT.
deps_command() {
    msys=$MINGW_PACKAGE_PREFIX
    packages=""
    case $1 in
    build) packages="gcc make libc6-dev libstb-dev python3-venv pkg-config" ;;
    fuzz) packages="clang llvm" ;;
    check) packages="valgrind qemu-user libc6-dbg" ;;
    machines) packages=parallel ;;
    web) packages="clang lld wasi-libc libclang-rt-dev-wasm32 chromium firefox-esr fonts-dejavu-core" ;;
    analyse) packages="gcc libc6-dev libstb-dev clang clang-tidy cppcheck" ;;
    platforms)
        packages="gcc g++ clang tcc libc6-dev libstb-dev bmake musl-dev musl-tools libc6-dev-i386
            lib32gcc-$(gcc -dumpversion | cut -d. -f1)-dev mingw-w64-x86-64-dev gcc-mingw-w64-x86-64 mingw-w64-i686-dev
            gcc-mingw-w64-i686 wine wine64 lld wasi-libc libclang-rt-dev-wasm32 nodejs debootstrap python3-venv qemu-user
            $(for pair in $CROSS; do echo "gcc-${pair%:*} libc6-dev-${pair#*:}-cross"; done)" ;;
    esac
    if have apt-get && [ -n "$packages" ]; then echo apt-get install -y --no-install-recommends $packages
    elif [ "$1" != build ]; then return
    elif have dnf; then echo "dnf install -y gcc make glibc-devel stb-devel python3"
    elif have apk; then echo "apk add gcc make musl-dev stb python3"
    elif have pacman && [ -n "$msys" ]; then echo "pacman -S --needed --noconfirm make $msys-gcc $msys-stb $msys-python"
    elif have pacman; then echo "pacman -S --needed --noconfirm gcc make stb python"
    elif have brew; then echo "brew install stb python3"
    elif have pkg; then echo "pkg install -y stb python3"
    fi
}

# The prefix of a command that needs root: nothing for root, and where packages are the user's own.
as_root() {
    case $(id -u),$1 in 0,* | *,brew* | *mingw*) return ;; esac
    if have sudo || ! have doas; then echo "sudo "; else echo "doas "; fi
}

install() {
    command=$(deps_command "${1:-build}")
    [ -n "$command" ] || { say "no packages known for ${1:-build} on this system: install them by hand (README)"; exit 1; }
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
    command=$(deps_command build)
    say "$1 missing. Install them with:"
    say "    ${command:+$(as_root "$command")}${command:-(no known package manager: see README)}"
}

# ---- Finding the headers ----

# stb_image before 2.28 lacks this function: it refuses JPEGs with bytes after the last pixel, among others.
cat >"$work/probe.c" <<END
#ifndef ANY_VERSION
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_NO_SIMD
#define STBI_NO_STDIO
#endif
#if defined(JANUS_STB_FLAT)
#include <stb_image.h>
#include <stb_image_write.h>
#else
#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
#endif
void (*probe[])(void) = {
#ifndef ANY_VERSION
    (void (*)(void))stbi__skip_jpeg_junk_at_end,
#endif
    (void (*)(void))stbi_load_from_memory, (void (*)(void))stbi_write_png_to_func};
END

# fits FLAGS: do both headers compile, in a version that is new enough? Sets $old where only the version is wrong.
old=""
compiles() { $CC $CFLAGS $1 -c "$work/probe.c" -o "$work/probe.o" >/dev/null 2>&1; }
fits() {
    compiles "$1 -DANY_VERSION" || return 1
    compiles "$1" || { old=1; return 1; }
}

# Sets $flags to those of the first folder that has the headers, in a subfolder stb or flat.
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

# ---- Fetching them: each of these fills $work/got ----

# The address of Debian's packages that /etc/apt names.
mirror() {
    apt-get indextargets --format '$(LABEL) $(ORIGIN) $(REPO_URI)' 2>/dev/null | sed -n 's/^Debian Debian //p' | sed 1q
}

# from_debian RELEASE: its package libstb-dev. apt works with lists of its own, which needs no root and changes nothing.
from_debian() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    have apt-get && have dpkg-deb && [ -f "${KEYRING:-$keyring}" ] || return 1
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
    : >"$work/apt/status"
    address=${MIRROR:-$(mirror)}
    echo "deb [signed-by=${KEYRING:-$keyring}] ${address:-http://deb.debian.org/debian} $1 main" >"$work/apt/sources.list"
    for command in update "download libstb-dev"; do
        (cd "$work/got" && apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=20 \
            -o "Dir::State=$work/apt/state" -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" \
            -o Acquire::Languages=none -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::Etc::preferencesparts=/dev/null $command) || return 1
    done
    dpkg-deb -x "$work"/got/*.deb "$work/got"
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

# download_checked NAME SUM: keeps a file with this sum only.
download_checked() {
    download "$STB_URL/$1" "$work/got/$1" || { say "$STB_URL/$1 cannot be downloaded"; return 1; }
    sum=$(sha256 "$work/got/$1")
    [ "$sum" = "$2" ] && return
    if [ -n "$sum" ]; then say "refused: $STB_URL/$1 has the SHA-256 $sum instead of $2"
    else say "refused: nothing here computes a SHA-256 (sha256sum, shasum, openssl or sha256) to check $STB_URL/$1 with"
    fi
    return 1
}

# keep DIR: moves both headers from $work/got to DIR/stb once they compile.
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
    say "The stb headers are brought into build/stb${old:+, since those found are older than 2.28} (FETCH=no forbids it)"
    mkdir -p "$work/got"
    from_debian trixie >"$work/log" 2>&1 && keep build && return
    rm -rf "$work/got" && mkdir "$work/got"
    download_checked stb_image.h $SUM_IMAGE && download_checked stb_image_write.h $SUM_IMAGE_WRITE && keep build
}

# Prints the flags and notes them for the next target, with the compiler that they were found for.
found() {
    printf '%s\n' "$CC $CFLAGS" "$1" >"$work/flags" && mv -f "$work/flags" build/stb.flags
    echo "$1"
    exit 0
}

print_flags() {
    if [ -z "$STB" ] && { IFS= read -r for_compiler && IFS= read -r flags; } 2>/dev/null <build/stb.flags &&
        [ "$for_compiler" = "$CC $CFLAGS" ] && compiles "$flags"; then
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
        if [ -n "$old" ]; then say "STB=$STB: stb_image.h there is older than 2.28"
        else say "STB=$STB: that folder has no stb_image.h and stb_image_write.h that $CC compiles"
        fi
        exit 2
    fi
    find_installed && found "$flags"
    [ "$FETCH" != no ] && bring && found "-isystem build"
    if [ -n "$old" ]; then say "The stb headers that are installed are older than 2.28: get newer ones (https://github.com/nothings/stb),"
    else missing "The stb headers are"
    fi
    say "or name the folder that holds stb_image.h: make STB=DIR"
    exit 2
}

case $1 in
flags) print_flags ;;
install) install "$2" ;;
release)
    mkdir -p "$work/got"
    from_debian "$2" >"$work/log" 2>&1 && keep "$3" && exit
    cat "$work/log" >&2
    exit 1 ;;
mirror) mirror ;;
*) say "usage: setup.sh flags|install [WHAT]|release NAME DIR|mirror"; exit 1 ;;
esac
