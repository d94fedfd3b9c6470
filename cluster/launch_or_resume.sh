#!/bin/bash
# Launch a sweep, or resume it if it has begun: one command for what may be started again after a preemption.
#
#   launch_or_resume.sh [--from STORAGE/NAME] [--address HOST:PORT] RUN SPACE --data DATA [options of voxtune launch]
#   launch_or_resume.sh [--address HOST:PORT] RUN [options of voxtune resume]
#
# --from names the snapshot of a sweep that was launched with --storage STORAGE and whose folder RUN was called NAME: if
# RUN is not on this machine, it is made from the snapshot. The options of launch count the first time; --notify, whose
# URL RUN does not keep, and --no_report count each time. --check, in front of RUN: only say what is wrong with the
# arguments. The script is installed with voxtune.

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

# Print what is done with RUN, but not all words: the URL of --notify may be a secret.
announce() {
    echo "voxtune $1 $run${address[1]:+, with Ray at ${address[1]}}"
}

from='' address=() check=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --check) check=yes && shift && continue ;;
        --from) from=${2:-} ;;
        --address) address=(--address "${2:-}") ;;
        *) fail "$1: only --from, --address and --check may stand before RUN" ;;
    esac
    shift 2 || fail "$1 lacks its value"
done
[[ $# -ge 1 ]] || fail "expected RUN SPACE --data DATA"
run=$1
shift
begun='' && [[ -e $run/study.yaml ]] && begun=yes
[[ -n $begun || ${1:---} != --* ]] || fail "$run has no sweep to resume; to launch one: launch_or_resume.sh $run SPACE --data DATA"
[[ -z $check ]] || exit 0

if [[ ${1:---} == --* ]]; then
    kept=("$@")
else
    keep "$@"
fi
if [[ -n $begun ]]; then
    announce resume
    exec voxtune resume "$run" "${kept[@]}" "${address[@]}"
fi
if [[ -n $from ]]; then
    data=''
    for ((i = 1; i <= $#; i++)); do
        case ${!i} in
            --data=*) data=${!i#--data=} ;;
            --data) next=$((i + 1)) && data=${!next:-} ;;
        esac
    done
    voxtune resume "$run" --from "$from" --data "${data:-.}" "${kept[@]}" "${address[@]}" &
    trap 'kill -TERM $! 2> /dev/null' TERM
    while kill -0 $! 2> /dev/null; do wait $!; done
    wait $!
    code=$?
    trap - TERM
    [[ $code == 2 && ! -e $run/study.yaml ]] || exit $code
    echo "no sweep to resume: this launches one, unless the storage cannot be read"
fi
announce launch
exec voxtune launch "$@" --out "$run" "${address[@]}"
