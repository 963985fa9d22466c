#!/bin/sh
# Newer servers and Pythons than this system has, from a newer Debian in folders outside the repository.
# Usage: tools/debian.sh rabbitmq [SUITE]    RabbitMQ from a Debian suite (default: sid), into the cache; then prints the
#                                            folder of its programs, as LEVERET_RABBITMQ_BIN wants it
#        tools/debian.sh python VERSION...   interpreters from sid, into the cache: 3.14, 3.15; then prints their names.
#                                            Without pip and venv: virtualenv makes environments with them
#        tools/debian.sh folders             prints the folders of RabbitMQ programs that the cache holds
# Environment: LEVERET_CACHE (default: leveret/ in XDG_CACHE_HOME or ~/.cache). Everything may be deleted at any time.
set -eu

cache=${LEVERET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leveret}

missing() {
    echo "$*" >&2
    exit 1
}

# The mirror that this system's own packages come from.
mirror() {
    command -v apt-get >/dev/null || missing "This needs a Debian system: apt-get is not there."
    site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' | grep -v security | head -n 1)
    [ -n "$site" ] || missing "This needs the mirror of a Debian system: run apt-get update first, or none is configured."
    echo "$site"
}

# A minimal system of a suite in its own folder. $1: suite, $2: folder
bootstrap() {
    [ ! -e "$2/.complete" ] || return 0
    site=$(mirror)
    [ "$(id -u)" = 0 ] || missing "A system in a folder needs root: run this with sudo, or install the server yourself and set LEVERET_RABBITMQ_BIN."
    for program in debootstrap unshare; do
        command -v $program >/dev/null || missing "$program is not there. Run: apt-get install -y debootstrap util-linux"
    done
    unshare --mount true 2>/dev/null || missing "Root may not mount here (unshare --mount fails), as in most containers: the capability SYS_ADMIN is missing."
    rm -rf "$2"
    mkdir -p "$2"
    log=$cache/$1.log
    echo "making a Debian $1 system in $2 (a few minutes; output: $log)" >&2
    debootstrap --variant=minbase "$1" "$2" "$site" >"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
    printf 'deb %s %s main\ndeb-src %s %s main\n' "$site" "$1" "$site" "$1" >"$2/etc/apt/sources.list"
    apt-config dump --format '%F "%v";%n' Acquire >"$2/etc/apt/apt.conf.d/90acquire"
    printf '#!/bin/sh\nexit 101\n' >"$2/usr/sbin/policy-rc.d" # packages start no services
    chmod +x "$2/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf "$2/etc/resolv.conf"
    [ -e "$2/etc/hosts" ] || printf '127.0.0.1 localhost\n::1 localhost\n' >"$2/etc/hosts" # or a node asks the network who localhost is
    write_enter "$2"
    "$2/enter" / apt-get update >>"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
    touch "$2/.complete"
}

# DIR/enter FOLDER COMMAND...: runs a command inside, where FOLDER and /tmp are the same as outside. The mounts are the
# command's own and go with it, so nothing has to be unmounted.
write_enter() {
    cat >"$1/enter" <<'ENTER'
#!/bin/sh
# Usage: enter FOLDER COMMAND...
root=$(dirname "$(readlink -f "$0")")
exec unshare --mount --propagation private /bin/sh -c '
root=$1 folder=$2
shift 2
for path in /proc /sys /dev /tmp "$folder"; do
    case $path in /) continue ;; esac
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path" || exit 1
done
exec chroot "$root" "$@"
' enter "$root" "$@"
ENTER
    chmod +x "$1/enter"
}

# Runs a command in a system, and ends what it leaves running: an epmd would stay behind and listen on all addresses.
# $1: the system, then the command
run_and_end_all() {
    inside=$1
    shift
    unshare --pid --fork --kill-child --mount-proc "$inside/enter" / "$@"
}

# $1: the system, $2: a log file, then packages
install() {
    system=$1 log=$2
    shift 2
    run_and_end_all "$system" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" \
        >"$log" 2>&1 </dev/null || { tail -n 5 "$log" >&2; exit 1; }
}

rabbitmq() { # $1: suite
    root=$cache/debian-$1 programs=$cache/rabbitmq-$1
    if [ ! -x "$programs/rabbitmq-server" ]; then
        bootstrap "$1" "$root"
        log=$cache/rabbitmq-$1.log
        echo "installing RabbitMQ there (output: $log)" >&2
        install "$root" "$log" rabbitmq-server
        mkdir -p "$programs"
        for program in rabbitmqctl epmd rabbitmq-server; do # rabbitmq-server last: it marks the folder as complete
            inside=/usr/lib/rabbitmq/bin/$program
            [ $program = epmd ] && inside=/usr/bin/epmd
            printf '#!/bin/sh\nexec %s "${HOME:-/}" %s "$@"\n' "'$root/enter'" $inside >"$programs/$program"
            chmod +x "$programs/$program"
        done
    fi
    # Tests read the version at every start. rabbitmqctl starts an epmd, too.
    [ -s "$programs/version" ] || run_and_end_all "$root" /usr/lib/rabbitmq/bin/rabbitmqctl version >"$programs/version"
    echo "$programs"
}

python() { # $1: a version as 3.14
    root=$cache/debian-sid prefix=$cache/python-$1
    if [ ! -x "$prefix/bin/python$1" ]; then
        command -v patchelf >/dev/null || missing "patchelf is not there. Run: apt-get install -y patchelf"
        bootstrap sid "$root"
        log=$cache/python-$1.log
        echo "installing Python $1 there (output: $log)" >&2
        install "$root" "$log" "python$1" "python$1-dev"
        loader=$(patchelf --print-interpreter "$root/usr/bin/python$1")
        libraries=$(dirname "$(find "$root/usr/lib" -maxdepth 2 -name libexpat.so.1)")
        rm -rf "$prefix"
        mkdir -p "$prefix/bin" "$prefix/lib" "$prefix/include"
        ln -s "$root/usr/lib/python$1" "$prefix/lib/python$1"
        # Debian's pyconfig.h names the real one, which its compiler finds in a folder of the system.
        cp -R "$root/usr/include/python$1" "$prefix/include"
        cp "$root/usr/include/$(basename "$libraries")/python$1/pyconfig.h" "$prefix/include/python$1/pyconfig.h"
        # It runs outside with the libraries that it was built for. An RPATH, not a RUNPATH: that counts for its modules, too.
        cp "$root/usr/bin/python$1" "$prefix/bin/.python$1"
        patchelf --set-interpreter "$root$loader" --force-rpath --set-rpath "$libraries" "$prefix/bin/.python$1"
        mv "$prefix/bin/.python$1" "$prefix/bin/python$1" # the last step: it marks the folder as complete
    fi
    echo "$prefix/bin/python$1"
}

case "${1:-}" in
rabbitmq)
    rabbitmq "${2:-sid}"
    ;;
python)
    shift
    for each in "$@"; do python "$each"; done
    ;;
folders)
    for folder in "$cache"/rabbitmq-*; do
        [ ! -x "$folder/rabbitmq-server" ] || [ ! -x "$folder/rabbitmqctl" ] || echo "$folder"
    done
    ;;
*)
    sed -n '2,8s/^# //p' "$0" >&2
    exit 2
    ;;
esac
