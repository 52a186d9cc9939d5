# Sourced by the batch files of this folder: `prepare` and `supervise` run in the batch shell, `run_node` on each node.
#
# What may be set in the environment of sbatch:
#   REPOSITORY                this project's folder, seen by all nodes; by default the one sbatch is called in
#   VENV                      virtual environment to activate
#   PROCESSES_PER_NODE        by default one per GPU of the job, or one if it has none
#   ACCELERATE_CONFIG         file for accelerate launch --config_file; what this file decides itself wins over it
#   MASTER_ADDR, MASTER_PORT  by default the name of the first node, and a port made of the job's number
#   LOGS                      folder of the attempts' logs, logs by default
#   REQUEUE                   0: end with status 85 instead of requeueing (chain.sh does that)
#   MAX_CRASHES, MAX_STOPS    in a row without progress, after which a person should look: 3 and 10
# shellcheck shell=bash

say() {
    echo "$(date '+%F %T') $*"
}

# Environment, names and folders of this attempt.
prepare() {
    cd "${REPOSITORY:=$SLURM_SUBMIT_DIR}" || exit 2
    if [[ -n ${VENV:-} ]]; then
        # shellcheck disable=SC1091
        source "$VENV/bin/activate" || { say "error: no virtual environment at VENV=$VENV." >&2 && exit 2; }
    fi
    # The number of an array's last task is also that of the whole array, so scontrol wants ARRAY_TASK.
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
    LOGS=${LOGS:-logs}
    mkdir -p "$LOGS"
    LOG=$LOGS/$SLURM_JOB_NAME-$JOB-attempt${SLURM_RESTART_COUNT:-0}.log
    if [[ -z ${MASTER_ADDR:-} ]]; then
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    fi
    MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
    export REPOSITORY MASTER_ADDR MASTER_PORT
}

# SCRIPT OPTIONS...: run it on all nodes, one launcher each. Sets CODE, and KILLED if Slurm ended the job meanwhile.
run_everywhere() {
    local step
    CODE=0 KILLED=
    # Slurm tells the batch shell only when it ends or requeues the whole job; the shell has to live to write that down.
    trap 'KILLED=1' TERM
    say "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: $* (log: $LOG)"
    # One task per node. When one node is done the others are too, or hang: a minute, then Slurm kills them.
    # (srun does not inherit --cpus-per-task from sbatch.)
    # shellcheck disable=SC2016
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 --wait=60 \
        --output="$LOG" --open-mode=append \
        bash -c 'source "$REPOSITORY/launch/slurm/common.sh"; run_node "$@"' run_node "$@" &
    step=$!
    while kill -0 "$step" 2>/dev/null; do # a trap ends wait early
        wait "$step" || true
    done
    wait "$step" || CODE=$?
}

# SCRIPT OPTIONS...: on one node, through accelerate launch. Status 0, or 1 whatever went wrong.
run_node() {
    local processes worker launcher='' stop='' told=()
    local gpus=${SLURM_GPUS_ON_NODE:-0}
    if [[ $gpus == 0 ]]; then # without gres, a job sees all of a node's
        gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
    fi
    processes=${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    if [[ $gpus == 0 && -z ${OMP_NUM_THREADS:-} ]] && ((${SLURM_CPUS_PER_TASK:-1} >= processes)); then
        export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-1} / processes)) # accelerate would take 1
    fi
    local total=$((processes * SLURM_JOB_NUM_NODES))
    local words=(--num_processes "$total" --num_machines "$SLURM_JOB_NUM_NODES" --machine_rank "$SLURM_NODEID"
        --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT")
    if ((total > 1)); then
        words+=(--multi_gpu) # that is how accelerate spells torchrun, also for CPUs
    fi
    if [[ -n ${ACCELERATE_CONFIG:-} ]]; then
        words+=(--config_file "$ACCELERATE_CONFIG")
    else
        words+=(--mixed_precision no --dynamo_backend no) # the scripts have options for these
    fi

    # Slurm signals every process of a step. Launchers would die of it, so they are made deaf. The workers inherit that
    # until their own handlers stand, so none dies while it loads; those that heard nothing are told by this shell as soon
    # as they listen.
    trap 'stop=${stop:-1}' USR1 TERM
    (
        trap '' USR1 TERM
        export PET_SIGNALS_TO_HANDLE=SIGINT PET_SHUTDOWN_TIMEOUT=120
        exec accelerate launch "${words[@]}" "$@"
    ) &
    launcher=$!
    while kill -0 "$launcher" 2>/dev/null; do
        if [[ -n $stop ]]; then
            for worker in $(pgrep -P "$launcher"); do
                if [[ -z ${told[$worker]:-} ]] && listens "$worker"; then
                    [[ $stop == 1 ]] || kill -USR1 "$worker" # at the first look, it has had Slurm's own signal
                    told[worker]=1
                fi
            done
            stop=2
            sleep 2 || true # a signal to all ends that, too
        else
            wait "$launcher" || true
        fi
    done
    wait "$launcher"
}

# PID: whether it has a handler for SIGUSR1, number 10.
listens() {
    local caught
    caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null)
    ((16#${caught:-0} & 1 << 9))
}

# NAME WORDS...: the value of option --NAME on a command line, or else in its --config file.
option() {
    local name=$1 value='' config=''
    shift
    while (($#)); do
        case $1 in
            --"$name"=*) value=${1#*=} ;;
            --"$name") value=${2:-} ;;
            --config=*) config=${1#*=} ;;
            --config) config=${2:-} ;;
        esac
        shift
    done
    if [[ -z $value && -f $config ]]; then
        value=$(sed -n "s/^$name:[[:space:]]*//p" "$config" | sed "s/[[:space:]]#.*//; s/[\"']//g; s/[[:space:]]*$//")
    fi
    echo "$value"
}

# FILE: its status and global_step.
read_status() {
    python -c 'import json, sys; told = json.load(open(sys.argv[1])); print(told["status"], told.get("global_step", 0))' "$1"
}

# SCRIPT OPTIONS...: one attempt at a training; requeues this job unless the training has finished or cannot.
supervise() {
    local folder told memory status='' step=0 last=0 crashes=0 stops=0
    folder=$(option output_dir "$@")
    if [[ -z $folder ]]; then
        say "error: give --output_dir FOLDER, here or in the --config file." >&2
        exit 2
    fi
    told=$folder/run_status.json
    if [[ -n ${CHAINED:-} && -f $told ]]; then
        read -r status step < <(read_status "$told") || true
        if [[ $status == finished ]]; then
            say "an earlier job of the chain has finished this training."
            exit 0
        elif [[ $status == failed ]]; then
            say "error: an earlier job of the chain has failed: $(<"$told")" >&2
            exit 2
        fi
        status='' step=0
    fi

    memory=$LOGS/$SLURM_JOB_NAME-$JOB.progress # survives the requeues; its time is the start of this attempt
    if [[ -f $memory ]]; then
        read -r last crashes stops <"$memory"
    fi
    echo "$last $crashes $stops" >"$memory"
    run_everywhere "$@"

    if [[ $told -nt $memory ]]; then # an older one tells of an earlier run
        read -r status step < <(read_status "$told") || true
    fi
    if [[ $CODE == 0 ]]; then
        status=finished
    fi
    if [[ $status != finished && $status != failed && -n $KILLED ]]; then
        say "ended by Slurm (status ${status:-unknown}, step $step)."
        if [[ $(scontrol show job "$JOB") != *Reason=TimeLimit* ]]; then
            exit 85 # cancelled, or requeued by Slurm itself
        fi
    fi
    if ((step > last)); then
        crashes=0 stops=0
    fi
    case $status in
        finished)
            say "finished."
            exit 0
            ;;
        failed)
            say "error: the run cannot continue as it is, so it is not requeued: $(<"$told")" >&2
            exit 2
            ;;
        stopped)
            stops=$((stops + 1))
            say "stopped at step $step, with a checkpoint."
            ;;
        *)
            crashes=$((crashes + 1))
            say "crashed or was killed (status ${status:-not written}, step $step), see $LOG."
            if [[ -z $status && ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
                say "error: it never got to training, so it is not requeued." >&2
                exit 2
            fi
            ;;
    esac
    if ((crashes >= ${MAX_CRASHES:-3} || stops >= ${MAX_STOPS:-10})); then
        say "error: $crashes crashes and $stops stops without progress; not requeued." >&2
        exit 1
    fi
    if [[ ${REQUEUE:-1} == 0 ]]; then
        exit 85
    fi
    echo "$((step > last ? step : last)) $crashes $stops" >"$memory"
    # Requeueing ends this job, and what asks for it must not end first.
    if ! (trap '' TERM && exec scontrol requeue "$JOB"); then
        say "error: Slurm does not requeue; submit again, the training will resume." >&2
        exit 85
    fi
    say "requeued."
    exit 0
}
