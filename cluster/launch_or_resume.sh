#!/bin/bash
# Launch a sweep, or resume it if it has begun: one command for what may be started again after a preemption.
#
#   launch_or_resume.sh [--from STORAGE/NAME] [--address HOST:PORT] RUN SPACE --data DATA [options of voxtune launch]
#
# --from names the snapshot of a sweep that was launched with --storage STORAGE and whose folder RUN was called NAME: if
# RUN is not on this machine, it is made from the snapshot. The options of launch count the first time; --notify, whose
# URL RUN does not keep, and --no_report count each time.

set -u

fail() {
    echo "launch_or_resume.sh: $1" >&2
    exit 2
}

# Note in `kept` those options of launch that count in a resume too.
keep() {
    kept=()
    while (($#)); do
        case $1 in
            --no_report | --notify=*) kept+=("$1") ;;
            --notify) kept+=("$1" "${2:-}") && shift ;;
        esac
        shift
    done
}

from='' address=()
while [[ ${1:-} == --* ]]; do
    [[ $1 == --from || $1 == --address ]] || fail "$1: only --from and --address may stand before RUN"
    [[ $1 == --from ]] && from=${2:-} || address=(--address "${2:-}")
    shift 2 || fail "$1 lacks its value"
done
[[ $# -ge 2 ]] || fail "expected RUN SPACE --data DATA"
run=$1 data=''
shift
for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --data ]]; then
        ((i++))
        data=${!i}
    fi
done

keep "$@"
if [[ -e $run/study.yaml ]]; then
    exec voxtune resume "$run" "${kept[@]}" "${address[@]}"
fi
if [[ -n $from ]]; then
    voxtune resume "$run" --from "$from" --data "${data:-.}" "${kept[@]}" "${address[@]}" &
    trap 'kill -TERM $! 2> /dev/null' TERM
    while kill -0 $! 2> /dev/null; do wait $!; done
    wait $!
    code=$?
    trap - TERM
    [[ $code == 2 && ! -e $run/study.yaml ]] || exit $code
    echo "no sweep to resume: this launches one, unless the storage cannot be read"
fi
exec voxtune launch "$@" --out "$run" "${address[@]}"
