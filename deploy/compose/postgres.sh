#!/bin/sh
# Starts PostgreSQL with the certificate and the password of the deployment, in any image that has it as Debian lays it out.
# Beyond loopback it speaks TLS alone, and asks for the password.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/hotslot

if [ "${1:-}" = ready ]; then
    exec psql -h /tmp -d hotslot -c 'select 1' -q -o /dev/null
fi
umask 077
if [ ! -s "$data/ready" ]; then
    rm -rf "$data"
    initdb -D "$data" -U postgres --encoding=UTF8 --locale=C.UTF-8 --auth-local=peer --auth-host=reject >/dev/null
    printf '%s\n' 'local all all peer' 'hostssl hotslot hotslot all scram-sha-256' >"$data/pg_hba.conf"
    pg_ctl -D "$data" -w -o "-c listen_addresses= -k /tmp" start >/dev/null
    psql -h /tmp -d postgres -q -c "create role hotslot login password '$(cat /credentials/postgres-password)'"
    createdb -h /tmp -O hotslot hotslot
    pg_ctl -D "$data" -w stop >/dev/null
    echo ok >"$data/ready"
fi
# PostgreSQL takes no key that others may read. New certificates are taken every day.
cp /credentials/postgres.crt /credentials/postgres.key "$data/"
(
    while sleep 86400; do
        cp /credentials/postgres.crt /credentials/postgres.key "$data/"
        psql -h /tmp -d postgres -q -c 'select pg_reload_conf()' -o /dev/null
    done
) &
exec postgres -D "$data" -c 'listen_addresses=*' -k /tmp \
    -c ssl=on -c "ssl_cert_file=$data/postgres.crt" -c "ssl_key_file=$data/postgres.key"
