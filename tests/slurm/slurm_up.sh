#!/usr/bin/env bash
# Start a SLURM cluster of one node on the loopback interface, for tests, without systemd.
# usage: slurm_up.sh STATE    then: export SLURM_CONF=STATE/slurm.conf
# Needs root and Debian's packages slurm-wlm and munge. Writes below STATE alone, with a key and
# ports of its own; what runs already is left as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=${1:?usage: slurm_up.sh STATE}
mkdir -p "$state"/{munge,ctld,slurmd,log,run}
state=$(cd "$state" && pwd)
chmod 755 "$state"
chmod 700 "$state/munge"
host=$(hostname -s)
cpus=$(env -u OMP_NUM_THREADS nproc)
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
read -r port other < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')

alive() { # FILE NAME: whether the process of a pid file runs, as that program, and is no zombie
    [ -s "$1" ] || return 1
    local pid
    pid=$(cat "$1")
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
}

if ! alive "$state/run/slurmctld.pid" slurmctld; then
    sed -e "s#@STATE@#$state#g" -e "s#@HOST@#$host#g" -e "s#@CPUS@#$cpus#g" -e "s#@MEM@#$memory#g" \
        -e "s#@CTLD_PORT@#$port#g" -e "s#@SLURMD_PORT@#$other#g" "$here/slurm.conf.in" >"$state/slurm.conf"
fi
export SLURM_CONF=$state/slurm.conf
[ -s "$state/munge/munge.key" ] || (umask 377 && head -c 1024 /dev/urandom >"$state/munge/munge.key")
if ! alive "$state/run/munged.pid" munged; then
    rm -f "$state/run/munge.sock"*
    munged --key-file="$state/munge/munge.key" --socket="$state/run/munge.sock" \
        --pid-file="$state/run/munged.pid" --log-file="$state/log/munged.log" \
        --seed-file="$state/munge/seed" --num-threads=2
fi
alive "$state/run/slurmctld.pid" slurmctld || slurmctld -f "$SLURM_CONF" -L "$state/log/slurmctld.log"
alive "$state/run/slurmd.pid" slurmd || slurmd -N "$host" -f "$SLURM_CONF" -L "$state/log/slurmd.log"
for _ in $(seq 60); do
    now=$(timeout 3 sinfo -h -o %T 2>/dev/null || true)
    case "$now" in
        idle | mixed | allocated) exit 0 ;;
        down* | drained*) timeout 3 scontrol update nodename="$host" state=resume || true ;;
    esac
    sleep 0.5
done
echo "the node is ${now:-not there}; the last of the logs:" >&2
tail -n 5 "$state"/log/*.log >&2
exit 1
