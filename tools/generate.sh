#!/usr/bin/env bash
# Generates the Python code of protos/keybearer into client/keybearer/v1.
#
#   tools/generate.sh write PYTHON   replaces the committed code
#   tools/generate.sh check PYTHON   fails, showing the difference, when the committed code is stale
#
# PYTHON is the interpreter of the generation environment (requirements/generate.txt). The code is
# first written to a temporary directory, so a proto that does not compile leaves everything as it is.
set -euo pipefail

mode=${1:?usage: tools/generate.sh write|check PYTHON}
python=${2:?usage: tools/generate.sh write|check PYTHON}
cd "$(dirname "$0")/.."

committed=client/keybearer/v1
output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT

mapfile -t protos < <(find protos/keybearer -name '*.proto' | LC_ALL=C sort)
if [ "${#protos[@]}" -eq 0 ]; then
    echo "generate: no .proto file under protos/keybearer" >&2
    exit 1
fi
roots=(-I protos)
if [ -d protos/third_party ]; then
    roots+=(-I protos/third_party)
fi

# protoc finds its plugins, protoc-gen-mypy and protoc-gen-mypy_grpc, on PATH.
PATH="$(cd "$(dirname "$python")" && pwd):$PATH" "$python" -m grpc_tools.protoc "${roots[@]}" \
    --python_out="$output" \
    --grpc_python_out="$output" \
    --mypy_out="quiet,readable_stubs:$output" \
    --mypy_grpc_out="quiet:$output" \
    "${protos[@]}"

# A file without a service still gets a _pb2_grpc module, with nothing in it.
for proto in "${protos[@]}"; do
    if ! grep -qE '^service[[:space:]]' "$proto"; then
        module=${proto#protos/}
        rm -f "$output/${module%.proto}"_pb2_grpc.py "$output/${module%.proto}"_pb2_grpc.pyi
    fi
done
echo '"""Generated from protos/keybearer/v1 by `make generate`; do not edit."""' \
    >"$output/keybearer/v1/__init__.py"

case $mode in
write)
    mkdir -p "$committed"
    find "$committed" -maxdepth 1 -type f -delete
    cp "$output"/keybearer/v1/* "$committed/"
    echo "generate: $committed written from ${#protos[@]} files"
    ;;
check)
    if ! diff -r -u -N --exclude=__pycache__ "$committed" "$output/keybearer/v1"; then
        echo "generate: $committed is not what the protos say: run 'make generate'" >&2
        exit 1
    fi
    echo "generate: $committed is up to date"
    ;;
*)
    echo "generate: unknown mode '$mode', expected write or check" >&2
    exit 2
    ;;
esac
