#!/bin/sh
# Makes what compose.yaml needs and the repository must not hold: secrets, a certificate, who may come in.
#   sh deployments/compose/prepare.sh HOST USER [PORT]
# It asks for the user's password (or reads it from standard input where that is no terminal). Run again with another
# USER it lets that one in too; secrets and certificate stay as they are. For a real certificate put it into
# deployments/secrets/tls.crt and tls.key, and restart nginx.
set -eu
[ $# -ge 2 ] || { sed -n '2,6s/^# *//p' "$0" >&2; exit 2; }
host=$1 user=$2 port=${3:-443}
case $user in *[!A-Za-z0-9._-]*) echo "a user's name is of letters, digits and . _ - only" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.."
umask 077

if [ ! -e .env ]; then
    origin=https://$host
    [ "$port" = 443 ] || origin=$origin:$port
    while IFS= read -r line; do
        case $line in
            PUBLIC_ORIGIN=) echo "PUBLIC_ORIGIN=$origin" ;;
            PORT=*) echo "PORT=$port" ;;
            *_PASSWORD=) echo "$line$(openssl rand -hex 24)" ;;
            *) echo "$line" ;;
        esac
    done < .env.example > .env.part
    mv .env.part .env
fi

# The folder is its owner's alone; what is in it is read by nginx, which is another user inside its container.
mkdir -p secrets
if [ ! -e secrets/tls.key ]; then
    openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=$host" -addext "subjectAltName=DNS:$host" \
        -keyout secrets/tls.key.part -out secrets/tls.crt 2> /dev/null
    mv secrets/tls.key.part secrets/tls.key
fi
if [ -t 0 ]; then password=$(openssl passwd -6); else IFS= read -r typed; password=$(printf %s "$typed" | openssl passwd -6 -stdin); fi
touch secrets/htpasswd
{ grep -v "^$user:" secrets/htpasswd || true; printf '%s:%s\n' "$user" "$password"; } > secrets/htpasswd.part
mv secrets/htpasswd.part secrets/htpasswd
chmod 644 secrets/htpasswd secrets/tls.crt secrets/tls.key
echo "Ready: https://$host$([ "$port" = 443 ] || echo ":$port") lets $user in, once docker compose is up."
