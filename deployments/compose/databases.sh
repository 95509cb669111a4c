#!/bin/bash
# Run by the image of PostgreSQL once, on an empty volume: a database and a role for each server, which sees no other's.
set -eu
for name in prefect mlflow; do
    variable="${name^^}_DATABASE_PASSWORD"
    psql --quiet --no-psqlrc -v ON_ERROR_STOP=1 -v name="$name" -v password="${!variable}" \
        --username postgres --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
