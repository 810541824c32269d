#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Real launchers over one output: mpirun, a one-node Slurm that is started
# here, and hosts that are namespaces of their own (network and host name).
# Each converts with `--ranks auto`, finalizes, and must give what one process
# gives, file by file; each source byte is read once in the whole job; workers
# are killed and started again; two are given the same rank.
#
#   cmake --build build/dev --target cluster      sh launchers.sh [MIB]
#
# From the environment: MOEC_CONVERT, the program. Installs nothing: a launcher
# that is not there is skipped, aloud. Debian: openmpi-bin; slurmd slurmctld
# slurm-client munge; iproute2. Slurm and namespaces want root.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
mib=${1:-256}
unset SLURM_PROCID OMPI_COMM_WORLD_RANK PMI_RANK RANK JOB_COMPLETION_INDEX

scratch=$(mktemp -d)
slurm=
clean() {
    if [ -n "$slurm" ]; then
        for name in slurmctld slurmd; do
            [ ! -f "$slurm/$name.pid" ] || kill "$(cat "$slurm/$name.pid")"
        done
    fi 2>/dev/null
    rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 130' INT TERM
chmod 755 "$scratch"
cd "$scratch" || exit 1

fail() {
    echo "FAIL: $*"
    tail -n 20 log 2>/dev/null
    exit 1
}

same() { # LAUNCHER: out is want, and what it read
    "$program" finalize out >said 2>log || fail "$1: finalize: exit $?"
    for path in want/*; do
        file=${path##*/}
        [ "$file" = provenance.json ] || cmp "$path" "out/$file" ||
            fail "$1: out/$file is not as in want"
    done
    [ "$(ls -A want)" = "$(ls -A out)" ] || fail "$1: other files"
    rm -r out
}

bytes_read() { # FILES...
    sed -n 's/^ *"bytes_read": \([0-9]*\).*/\1/p' "$@" |
        awk '{ s += $1 } END { printf "%.0f", s }'
}

read_once() { # LAUNCHER
    four=$(bytes_read said.*)
    [ "$four" -le $((one + one / 100)) ] ||
        fail "$1: processes read $four bytes, one reads $one"
    echo "$1: as one process; read $four bytes, one process $one"
    rm -f said.*
}

python3 "$here/../cli/make_slice.py" src "$mib" || exit 77
"$program" convert src want --ep 4 --redundant 4 --json >one 2>log ||
    fail "one process: exit $?"
one=$(bytes_read one)
# What each process runs: its JSON under a name of its own.
cat >worker <<END
#!/bin/sh
cd $scratch
exec $program convert src out --ep 4 --redundant 4 --ranks \${1:-auto} --json \
    >said.\$\$ 2>>log
END
# The same, but the second process dies in the middle of its work.
cat >mortal <<END
#!/bin/sh
me=\${OMPI_COMM_WORLD_RANK:-\$SLURM_PROCID}
[ "\$me" != 1 ] || exec timeout -s KILL 0.05 $scratch/worker
exec $scratch/worker
END
chmod 755 worker mortal
ran=

if command -v mpirun >/dev/null; then
    mpi="mpirun --allow-run-as-root --oversubscribe --mca btl self,vader"
    mpi="$mpi --mca plm isolated -n 4"
    $mpi ./worker || fail "mpirun: exit $?"
    same mpirun
    read_once mpirun
    $mpi ./mortal >/dev/null 2>&1 # mpirun ends the others too
    rm -f said.*
    $mpi ./worker || fail "mpirun, after a death: exit $?"
    same "mpirun, after a death"
    echo "mpirun: a killed worker's job is gone on with"
    rm -f said.*
    ran="$ran mpirun"
else
    echo "skipped: there is no mpirun"
fi

# ---------------------------------------------------------------- Slurm

start_slurm() {
    [ "$(id -u)" = 0 ] || return 1
    command -v slurmctld && command -v slurmd && command -v srun || return 1
    mkdir -p slurm/state slurm/spool /run/munge
    chown munge /run/munge || return 1
    pgrep munged || runuser -u munge -- munged --force || return 1
    cat >slurm/slurm.conf <<END
ClusterName=moec
SlurmctldHost=$(hostname)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$scratch/slurm/state
SlurmdSpoolDir=$scratch/slurm/spool
SlurmctldPidFile=$scratch/slurm/slurmctld.pid
SlurmdPidFile=$scratch/slurm/slurmd.pid
SlurmctldLogFile=$scratch/slurm/slurmctld.log
SlurmdLogFile=$scratch/slurm/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
NodeName=$(hostname) CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    SLURM_CONF=$scratch/slurm/slurm.conf
    export SLURM_CONF
    slurm=$scratch/slurm
    slurmctld && slurmd || return 1
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        sinfo -h -o %t | grep -q idle && return 0
        sleep 1
    done
    return 1
}

if start_slurm >slurm.said 2>&1; then
    step="srun --overcommit --kill-on-bad-exit=0 -n 4"
    timeout 300 $step ./worker || fail "srun: exit $?"
    same srun
    read_once srun
    timeout 300 $step ./mortal >/dev/null 2>&1 && fail "nobody died"
    rm -f said.*
    "$program" finalize out >said 2>log && fail "finalized without a rank"
    grep -q 'rank' log || fail "finalize does not name the missing rank"
    timeout 300 $step ./worker || fail "srun, again: exit $?"
    same "srun, after a death"
    echo "srun: finalize waits for a killed worker's rank"
    rm -f said.*
    ran="$ran slurm"
else
    echo "skipped: no Slurm can be started here: $(tail -n 1 slurm.said)"
fi

# ---------------------------------------------- hosts in namespaces

if unshare --net --uts true 2>/dev/null; then
    for k in 0 1 2 3; do
        JOB_COMPLETION_INDEX=$k unshare --net --uts sh -c \
            "hostname host$k; exec $scratch/worker" &
        eval "pid$k=$!"
    done
    for k in 0 1 2 3; do
        eval "wait \$pid$k" || fail "host$k: exit $?"
    done
    same hosts
    read_once "hosts in namespaces"
    # Two hosts are given the same rank: one works, the other is told, or
    # finds it done.
    for k in 0 1; do
        unshare --net --uts sh -c "hostname host$k; exec $scratch/worker 2" &
        eval "pid$k=$!"
    done
    told=0
    for k in 0 1; do
        eval "wait \$pid$k"
        code=$?
        case $code in
        0) told=$((told + 1)) ;;
        6) grep -q "another process" log || fail "host$k: no reason" ;;
        *) fail "host$k, the same rank: exit $code" ;;
        esac
    done
    [ $told -ge 1 ] || fail "two hosts with one rank: none of them did it"
    for list in 0-1 3; do
        ./worker $list || fail "ranks $list: exit $?"
    done
    same "hosts, the same rank twice"
    echo "hosts: the same rank given twice is done once"
    ran="$ran hosts"
else
    echo "skipped: no namespaces without root"
fi
[ -n "$ran" ] || exit 77
echo "ok:$ran"
