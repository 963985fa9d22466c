#!/bin/sh
# Makes sure that a RabbitMQ server is installed; the tests start nodes of their own from it (tests/support/rabbitmq.py).
# Usage: tools/rabbitmq.sh ensure    installs the distribution's package where it is missing and we may
#        tools/rabbitmq.sh find      prints the folder of its programs, or fails
#        tools/rabbitmq.sh headers   the same as ensure for the C client's headers, which only the comparison needs
set -eu

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

case "${1:-}" in
find)
    find_programs
    ;;
ensure)
    if folder=$(find_programs); then
        echo "RabbitMQ: $folder"
    else
        install_or_say "The tests need a RabbitMQ server." rabbitmq-server ||
            {
                command -v apt-get >/dev/null ||
                    echo "Then set LEVERET_RABBITMQ_BIN to the folder of rabbitmq-server and rabbitmqctl." >&2
                exit 1
            }
    fi
    ;;
headers)
    # The comparison runs without the C client as well, and says in its tables why.
    if ! printf '#include <amqp.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1; then
        install_or_say "To compare with the C client its headers are needed." librabbitmq-dev || true
    fi
    ;;
*)
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac
