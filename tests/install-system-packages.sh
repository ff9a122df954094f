#!/usr/bin/env bash
# What the tests use of Debian: a Docker Engine, a browser, PostgreSQL, Prometheus, and debootstrap for the base image. Root
# installs it; others are told what is missing, and the tests that need it are left out, aloud.
set -euo pipefail
missing=()
command -v dockerd > /dev/null || missing+=(docker.io)
command -v chromium > /dev/null || missing+=(chromium fonts-dejavu-core)
command -v debootstrap > /dev/null || missing+=(debootstrap)
compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null || missing+=(postgresql)
command -v ip > /dev/null || missing+=(iproute2)
command -v openssl > /dev/null || missing+=(openssl)
tools=$(dirname "$0")/../.tools
command -v promtool > /dev/null || [ -x "$tools/prometheus/usr/bin/promtool" ] || missing+=(prometheus)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "tests: not here: ${missing[*]} (root on Debian would install them); the tests that need them are left out"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# unpacked only: installed, it would start a daemon of its own
if [[ " ${missing[*]} " == *" prometheus "* ]]; then
    packages=$(mktemp -d)
    (cd "$packages" && apt-get download -qq prometheus > /dev/null)
    mkdir -p "$tools/prometheus"
    dpkg-deb -x "$packages"/prometheus_*.deb "$tools/prometheus"
    rm -r "$packages"
    missing=("${missing[@]/prometheus/}")
fi
wanted=(iptables ca-certificates)
for name in "${missing[@]}"; do [ -z "$name" ] || wanted+=("$name"); done
apt-get install -y -qq --no-install-recommends "${wanted[@]}" > /dev/null
