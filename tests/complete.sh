#!/usr/bin/env bash
# All that is tested, part by part, with the time that each took: `make test-all`. Exit status: 0 only if all passed.
set -uo pipefail
python=$1
jobs=$2
report=()
failed=0

part() {
  local name=$1 status=passed
  shift
  printf '\n== %s\n' "$name"
  SECONDS=0
  "$@" || { status=FAILED; failed=1; }
  report+=("$(printf '%-44s %s  %3d min %02d s' "$name" "$status" $((SECONDS / 60)) $((SECONDS % 60)))")
}

part "tests, products, mutants, simulations, fuzzer" \
  env GRIDFLEET_SEEDS=2000 "$python" -m pytest --complete --numprocesses "$jobs"
part "faults, with processes that are not forked" \
  env GRIDFLEET_START_METHOD=spawn "$python" -m pytest --complete tests/faults
# in exact its cases are among the tests
part "self-check, xla" "$python" -m gridfleet.worker.compiled_fit.selfcheck --mode xla

printf '\n'
printf '%s\n' "${report[@]}"
exit $failed
