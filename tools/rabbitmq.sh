#!/bin/sh
# Makes sure that a RabbitMQ server is installed; the tests start nodes of their own from it (tests/support/rabbitmq.py).
# Usage: tools/rabbitmq.sh ensure    installs the distribution's package where it is missing and we may
#        tools/rabbitmq.sh find      prints the folder of its programs, or fails
set -eu

packages="rabbitmq-server"

find_programs() {
    # Debian keeps the programs that run as any user outside PATH; its wrappers in /usr/sbin insist on root.
    for folder in "${LEVERET_RABBITMQ_BIN:-}" /usr/lib/rabbitmq/bin /opt/homebrew/sbin /usr/local/sbin; do
        if [ -n "$folder" ] && [ -x "$folder/rabbitmq-server" ] && [ -x "$folder/rabbitmqctl" ]; then
            echo "$folder"
            return 0
        fi
    done
    found=$(command -v rabbitmq-server) && dirname "$found"
}

install_with() { # $1: "" or "sudo -n"
    log=$(mktemp)
    echo "installing $packages (apt-get; once per machine, about a minute)"
    if ! { $1 apt-get update && $1 env DEBIAN_FRONTEND=noninteractive apt-get install -y $packages; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        echo "apt-get failed; its whole output is in $log" >&2
        return 1
    fi
    rm -f "$log"
}

case "${1:-}" in
find)
    find_programs
    ;;
ensure)
    if folder=$(find_programs); then
        echo "RabbitMQ: $folder"
    elif command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        install_with ""
    elif command -v apt-get >/dev/null && command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        install_with "sudo -n"
    elif command -v apt-get >/dev/null; then
        echo "The tests need a RabbitMQ server. Run: sudo apt-get install -y $packages" >&2
        exit 1
    else
        echo "The tests need a RabbitMQ server. Install it, and set LEVERET_RABBITMQ_BIN to the folder of rabbitmq-server and rabbitmqctl." >&2
        exit 1
    fi
    ;;
*)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac
