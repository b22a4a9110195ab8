#!/bin/sh
# Starts an S3 server (SeaweedFS) with the bucket of the stores; ready once that is there.
set -eu
rm -f /tmp/bucket-made
weed server -dir=/data -s3 -s3.port=8333 -ip=localhost -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 &
server=$!
trap 'kill "$server"; wait "$server"' TERM INT
until echo 's3.bucket.create -name hotslot' | weed shell -master=localhost:9333 -filer=localhost:8888 >/tmp/bucket.log 2>&1 &&
    echo s3.bucket.list | weed shell -master=localhost:9333 -filer=localhost:8888 | grep -q hotslot; do
    sleep 1
done
touch /tmp/bucket-made
wait "$server"
