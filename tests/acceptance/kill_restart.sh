#!/bin/sh
# Restarts a program of the sandbox's supervisor: kill_restart.sh PIDFILE REFUSAL [COMMAND...]
#
# What rotator.sandbox.restart does, for a hundredth of its time on the processor. Where the file REFUSAL is there, the
# program starts only if COMMAND says so; else it is left alone and the restart fails.
pidfile=$1 refusal=$2
shift 2
if [ -e "$refusal" ]; then
    "$@" || exit 1
fi
old=$(cat "$pidfile" 2>/dev/null)
[ -z "$old" ] || kill -TERM "$old" 2>/dev/null
# A daemon that was killed asks no more: whoever restarts the program next must not find this one at work.
while kill -0 "$PPID" 2>/dev/null; do
    new=$(cat "$pidfile" 2>/dev/null)
    [ -z "$new" ] || [ "$new" = "$old" ] || exit 0
    sleep 0.1
done
exit 1
