#!/usr/bin/env bash
# Generates the Python code of the protos into the packages that their own packages name:
#
#   protos/keybearer                        client/keybearer/v1
#   protos/third_party/keybearer_service    service/keybearer_service/ext_authz
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
case $mode in write | check) ;; *)
    echo "generate: unknown mode '$mode', expected write or check" >&2
    exit 2
    ;;
esac

output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT
# protoc finds its plugins, protoc-gen-mypy and protoc-gen-mypy_grpc, on PATH.
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"

# generate ROOT PATH TARGET: compile ROOT/PATH; its code belongs into TARGET/PATH, and nothing else
# is there.
generate() {
    local root=$1 path=$2 target=$3 proto module directory protos
    mapfile -t protos < <(find "$root/$path" -name '*.proto' | LC_ALL=C sort)
    if [ "${#protos[@]}" -eq 0 ]; then
        echo "generate: no .proto file under $root/$path" >&2
        exit 1
    fi
    "$python" -m grpc_tools.protoc -I "$root" \
        --python_out="$output" \
        --grpc_python_out="$output" \
        --mypy_out="quiet,readable_stubs:$output" \
        --mypy_grpc_out="quiet:$output" \
        "${protos[@]}"

    # A file without a service still gets a _pb2_grpc module, with nothing in it.
    for proto in "${protos[@]}"; do
        if ! grep -qE '^service[[:space:]]' "$proto"; then
            module=${proto#"$root"/}
            rm -f "$output/${module%.proto}"_pb2_grpc.py "$output/${module%.proto}"_pb2_grpc.pyi
        fi
    done
    while read -r directory; do
        echo "\"\"\"Generated from $root/${directory#"$output"/} by \`make generate\`; do not edit.\"\"\"" \
            >"$directory/__init__.py"
    done < <(find "$output/$path" -type d)

    if [ "$mode" = write ]; then
        rm -rf "${target:?}/$path"
        mkdir -p "$target/$path"
        cp -R "$output/$path/." "$target/$path/"
        echo "generate: $target/$path written from ${#protos[@]} files"
    elif diff -r -u -N --exclude=__pycache__ "$target/$path" "$output/$path"; then
        echo "generate: $target/$path is up to date"
    else
        echo "generate: $target/$path is not what the protos say: run 'make generate'" >&2
        exit 1
    fi
}

generate protos keybearer/v1 client
generate protos/third_party keybearer_service/ext_authz service
