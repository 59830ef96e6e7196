#!/usr/bin/env bash
# Proves the CUDA kernels on the GPU of this machine: `make gpu-check` builds the package and calls this; where it is
# installed already, or on PYTHONPATH, call it directly.
#
#   tests/gpu_check.sh [PYTHON]
#
# Logs go to build/gpu-check. Every step runs, even after one has failed; the exit status tells.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${1:-python3}
logs=$PWD/../build/gpu-check
mkdir -p "$logs"
export DHPE_REQUIRE_CUDA=1 OMP_WAIT_POLICY=passive
failed=()

step() {  # NAME COMMAND...: runs it, its output also in a log
  local name=$1
  shift
  echo "== $name: $*"
  "$@" 2>&1 | tee "$logs/$name.log"
  [[ ${PIPESTATUS[0]} -eq 0 ]] || failed+=("$name")
}

step doctor "$python" -m dhpe_fast.doctor
step tests "$python" -m pytest -q

# Without the caching allocator each tensor has its own bounds, and what was never written shows. Half of the kernels'
# time is then spent on allocating, so only some tests run: those that compare devices, which reach every kernel, and
# those of the paths that no small case takes (tiles of many hands; bins, large faces, sorted sums, crowded rows).
sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
if command -v "$sanitizer" >/dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  files=(test_cuda.py test_lbs.py test_refine.py test_newton.py test_large_meshes.py)
  names="agrees_with_the_cpu or repeats_itself or is_the_twins or takes_the_steps_of_the_cpu or batch_around_it"
  names+=" or all_faces_meet or large_as_the_image or repeat_bit_for_bit or thousands_of_contour_edges"
  checked=("${files[@]}" -k "needs_cuda and ($names)")
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all --kernel-regex kns=dhpe \
      "$python" -m pytest -q -p no:cacheprovider "${checked[@]}"
  done
else
  echo "$sanitizer is not on PATH: it comes with the CUDA toolkit; COMPUTE_SANITIZER may name it" >&2
  failed+=(sanitizers)
fi

if [[ ${#failed[@]} -gt 0 ]]; then
  echo "FAILED: ${failed[*]} (logs in build/gpu-check)" >&2
  exit 1
fi
echo "All steps passed; logs in build/gpu-check."
