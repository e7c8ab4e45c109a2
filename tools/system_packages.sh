#!/bin/sh
# Install the Debian packages that tests use as real counterparts, where this user may; else say the one
# line that does. Tests that lack one are skipped by name.
set -eu
missing=""
need() {  # need PROGRAM PACKAGE
    for dir in /usr/sbin /usr/bin /usr/local/bin /usr/local/sbin; do
        [ -x "$dir/$1" ] && return 0
    done
    missing="$missing $2"
}
need mosquitto mosquitto
need chromium chromium
need nats-server nats-server
need nginx nginx-light
need softhsm2-util softhsm2
need faketime faketime
need strace strace
need swtpm "swtpm libtss2-tcti-swtpm0"
need tpm2_getcap tpm2-tools
need tpm2-abrmd "tpm2-abrmd libtss2-tcti-tabrmd0"
need dbus-daemon dbus
need tpm2_ptool "libtpm2-pkcs11-1 libtpm2-pkcs11-tools"
[ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || missing="$missing postgresql"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing for the tests:$missing"
    apt-get update -qq || true
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "some tests will be skipped; to run them: sudo apt-get install$missing" >&2
