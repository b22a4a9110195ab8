#!/bin/sh
# Writes the protos' Go code to ./protos. Needs protoc, and the generators:
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@latest
#   go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${1:-$here/../../protos}
out=${2:-$here/protos}
mkdir -p "$out"
cd "$root"
${PROTOC:-protoc} -I. \
  "--go_out=$out" --go_opt=module=hotslot.dev/protos \
  "--go-grpc_out=$out" --go-grpc_opt=module=hotslot.dev/protos \
  hotslot/store/v1/*.proto hotslot/worker/v1/*.proto
[ -e "$out/go.mod" ] || printf 'module hotslot.dev/protos\n\ngo 1.21\n' > "$out/go.mod"
