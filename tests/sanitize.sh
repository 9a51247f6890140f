#!/usr/bin/env bash
# Build the extension with AddressSanitizer and UndefinedBehaviorSanitizer into a temporary directory and run pytest on it.
# Arguments go to pytest; without any, the whole suite runs. PYTHON and CC choose the interpreter and the compiler.
# SANITIZE=thread builds with ThreadSanitizer instead (gcc; it may need `setarch -R` before the command).
#
# The checkout's own extension is left alone: a copy of the package with the other build is what the tests import.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
cc=${CC:-gcc}
sanitize=${SANITIZE:-address,undefined}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python_value() { "$python" -c "import sysconfig; print(sysconfig.$1)"; }
include=$(python_value 'get_paths()["include"]')
suffix=$(python_value 'get_config_var("EXT_SUFFIX")')

# The whole tree, since tests look at sources, examples and documents, too.
mkdir "$work/tree"
tar -C "$root" --exclude=./.git --exclude=./.venv --exclude='*.so' --exclude=./build --exclude=__pycache__ --exclude=".*_cache" \
    --exclude=.hypothesis -cf - . |
    tar -C "$work/tree" -xf -
cd "$work/tree"

"$cc" -std=c11 -O1 -g -fno-omit-frame-pointer -fPIC -shared -pthread \
    -fsanitize="$sanitize" -fno-sanitize-recover=undefined \
    -Wall -Wextra -Wshadow -Wconversion -Werror \
    -I"$include" -Iext ext/*.c -o "ucm_async/_native$suffix"

# PYTHONMALLOC=malloc: else Python's own arenas hide what happens inside of them.
# Leaks are found by tests/native/test_leaks.py: an interpreter never frees everything at its end.
# pytest -s: captured output is lost when a sanitizer aborts.
export LD_PRELOAD
case $sanitize in
thread) LD_PRELOAD=$("$cc" -print-file-name=libtsan.so) ;;
*) LD_PRELOAD=$("$cc" -print-file-name=libasan.so) ;;
esac
export PYTHONMALLOC=malloc
export PYTHONPATH=$work/tree
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
export UBSAN_OPTIONS=print_stacktrace=1
export UCM_ASYNC_SANITIZED=1
"$python" -m pytest -s -q -p no:cacheprovider "$@"
