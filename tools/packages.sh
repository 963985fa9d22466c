# Installs packages of the distribution where the user may; other scripts source it.

install() { # $1: the package, $2: "" or "sudo -n"
    log=$(mktemp)
    echo "installing $1 (apt-get; once per machine, about a minute)"
    if ! { $2 apt-get update && $2 env DEBIAN_FRONTEND=noninteractive apt-get install -y "$1"; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        echo "apt-get failed; its whole output is in $log" >&2
        return 1
    fi
    rm -f "$log"
}

install_or_say() { # $1: why, $2: the package
    if ! command -v apt-get >/dev/null; then
        echo "$1 Install what Debian calls $2." >&2
        return 1
    elif [ "$(id -u)" = 0 ]; then
        install "$2" ""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        install "$2" "sudo -n"
    else
        echo "$1 Run: sudo apt-get install -y $2" >&2
        return 1
    fi
}
