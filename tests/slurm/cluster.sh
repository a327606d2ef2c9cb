#!/usr/bin/env bash
# A real one-node SLURM on loopback for tests: Debian's slurmctld, slurmd and munge, no accounting, two
# partitions (cpu, gpu) and one declared GPU, a clone of /dev/null. Needs root.
#   cluster.sh up | down
set -euo pipefail
STATE=${SLURM_TEST_STATE:-/var/lib/wsi-pipeline-slurm}
NODE=$(hostname -s)

running() { # pid file, name of the process
    [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]
}

wait_until() { # seconds, command...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "error: timed out: $*" >&2; exit 1; }
        sleep 0.2
    done
}

install_packages() {
    command -v slurmctld slurmd squeue munged >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

start_munge() {
    munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return
    if [ ! -s /etc/munge/munge.key ]; then
        head -c 1024 /dev/urandom > /etc/munge/munge.key
        chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
    fi
    install -d -o munge -g munge -m 755 /run/munge
    runuser -u munge -- munged --force
    wait_until 10 sh -c 'munge -n | unmunge'
}

# The job step plugin drops SLURM_CONF, so the files have to be at SLURM's default paths.
write_configuration() {
    local memory gpu=$STATE/gpu0
    memory=$(awk '/MemTotal/ {print int($2 / 1024) - 1024}' /proc/meminfo)
    [ -c "$gpu" ] || mknod -m 666 "$gpu" c 1 3
    mkdir -p /etc/slurm
    echo "NodeName=$NODE Name=gpu File=$gpu Flags=nvidia_gpu_env" > /etc/slurm/gres.conf
    cat > /etc/slurm/slurm.conf <<CONF
ClusterName=wsi
SlurmctldHost=$NODE(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/node
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=${SLURM_TEST_CPUS:-4} RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes=$NODE Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes=$NODE MaxTime=1-00:00:00 State=UP
CONF
}

up() {
    [ "$(id -u)" = 0 ] || { echo "error: the test cluster needs root" >&2; exit 2; }
    install_packages
    getent hosts "$NODE" >/dev/null || echo "127.0.0.1 $NODE" >> /etc/hosts
    mkdir -p "$STATE/controller" "$STATE/node"
    start_munge
    write_configuration
    running "$STATE/slurmctld.pid" slurmctld || slurmctld
    wait_until 20 sh -c 'scontrol ping | grep -q UP'
    running "$STATE/slurmd.pid" slurmd || slurmd -N "$NODE"
    wait_until 20 sh -c 'sinfo -h -o %T | grep -qE "idle|mix|alloc"'
    sinfo
}

down() {
    squeue -h -o %A 2>/dev/null | xargs -r scancel 2>/dev/null || true
    for name in slurmd slurmctld; do
        if running "$STATE/$name.pid" "$name"; then kill "$(cat "$STATE/$name.pid")"; fi
    done
    pkill -x munged || true
    for _ in $(seq 50); do pgrep -x 'slurm(d|ctld)' >/dev/null || break; sleep 0.2; done
    # With a configuration but no controller, every start of Snakemake would wait 9 s for a reply.
    rm -rf "$STATE" /etc/slurm/slurm.conf /etc/slurm/gres.conf
}

case ${1:-} in
    up) up ;;
    down) down ;;
    *) echo "usage: cluster.sh up | down" >&2; exit 2 ;;
esac
