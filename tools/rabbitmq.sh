#!/bin/sh
# Makes sure that a RabbitMQ server is installed; the tests start nodes of their own from it (tests/support/rabbitmq.py).
# Usage: tools/rabbitmq.sh ensure    installs the distribution's package if it is missing and the user may
#        tools/rabbitmq.sh find      prints the folders of all servers' programs, or fails
#        tools/rabbitmq.sh headers   installs the C client's headers in the same way; only the comparison needs them
#        tools/rabbitmq.sh go        installs Go and its client, for the comparison, too
set -eu

has_programs() {
    [ -x "$1/rabbitmq-server" ] && [ -x "$1/rabbitmqctl" ]
}

# Prints the folders of all servers, the first one first, as tests/support/rabbitmq.py finds them; fails when there is none.
find_programs() {
    if [ -n "${LEVERET_RABBITMQ_BIN:-}" ]; then
        # In a subshell: only there folders are split at colons, and their names are taken as they are.
        (
            set -f
            IFS=:
            for folder in $LEVERET_RABBITMQ_BIN; do
                [ -n "$folder" ] || continue
                has_programs "$folder" || { echo "LEVERET_RABBITMQ_BIN names $folder, where no RabbitMQ server is" >&2; exit 1; }
                echo "$folder"
            done
        )
        return
    fi
    {
        # Debian keeps the programs that run as any user outside PATH; its wrappers in /usr/sbin insist on root.
        on_path=$(command -v rabbitmq-server || true)
        for folder in /usr/lib/rabbitmq/bin /opt/homebrew/sbin /usr/local/sbin ${on_path:+"$(dirname "$on_path")"}; do
            if has_programs "$folder"; then
                echo "$folder"
                break
            fi
        done
        "$(dirname "$0")/debian.sh" folders
    } | grep .
}

. "$(dirname "$0")/packages.sh"

case "${1:-}" in
find)
    find_programs
    ;;
ensure)
    if folders=$(find_programs); then
        echo "$folders" | sed 's/^/RabbitMQ: /'
    elif [ -n "${LEVERET_RABBITMQ_BIN:-}" ]; then
        exit 1 # it has said which folder is wrong
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
    # The comparison also runs without the C client, and gives the reason in its tables.
    if ! printf '#include <amqp.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1; then
        install_or_say "To compare with the C client its headers are needed." librabbitmq-dev || true
    fi
    ;;
go)
    command -v go >/dev/null || install_or_say "To compare with Go's client Go is needed." golang-go || true
    if [ ! -d /usr/share/gocode/src/github.com/rabbitmq/amqp091-go ]; then
        install_or_say "To compare with Go's client its sources are needed." golang-github-rabbitmq-amqp091-go-dev || true
    fi
    ;;
*)
    sed -n '2,6s/^# //p' "$0" >&2
    exit 2
    ;;
esac
