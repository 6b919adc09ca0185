#!/usr/bin/env bash
# Stop what slurm_up.sh STATE started, by its recorded pids; --purge removes STATE too.
set -uo pipefail
state=$(cd "${1:?usage: slurm_down.sh STATE [--purge]}" && pwd) || exit 0
export SLURM_CONF=$state/slurm.conf
timeout 5 scancel --quiet --user=root 2>/dev/null
for _ in $(seq 30); do
    queue=$(timeout 3 squeue -h 2>/dev/null) || break
    [ -z "$queue" ] && break
    sleep 0.3
done
running() { [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status"; }
for name in slurmd slurmctld munged; do
    file=$state/run/$name.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    running "$pid" $name && kill "$pid"
    for _ in $(seq 50); do running "$pid" $name || break; sleep 0.1; done
    running "$pid" $name && kill -9 "$pid"
    rm -f "$file"
done
[ "${2:-}" = --purge ] && rm -rf "$state"
exit 0
