# What the proofs in clean root file systems share; they source it. It needs: work, a folder; name, of the device; port.

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2; }

# Python that has tvau-edge.
tvau() { "${PYTHON:-python3}" -m tvau_edge.runtime.cli "$@"; }

# A Debian of a release, with packages: debian FOLDER RELEASE PACKAGES [OPTIONS OF DEBOOTSTRAP]
debian() {
    local root=$1 release=$2 packages=$3
    shift 3
    rm -rf "$root"
    mkdir -p "$work/debs"
    debootstrap --variant=minbase --cache-dir="$work/debs" --include="$packages" "$@" "$release" "$root" \
        "${MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log"
}

# The configuration of a site with one camera, in site.toml: site SOURCE
site() {
    printf 'device = "%s"\n\n[broker]\nhost = "127.0.0.1"\nport = %s\n\n[[camera]]\nname = "street"\nsource = "%s"\n' \
        "$name" "$port" "$1" >"$work/site.toml"
}

# A mosquitto, and verdicts.jsonl with what it is told: broker [COMMAND THAT RUNS IT]; both end with the proof.
broker() {
    printf 'listener %s 127.0.0.1\nallow_anonymous true\n' "$port" >"$work/mosquitto.conf"
    PATH=$PATH:/usr/sbin "$@" mosquitto -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 &
    started+=($!)
    sleep 1
    "$@" mosquitto_sub -h 127.0.0.1 -p "$port" -t "tvau/$name/+/verdict" >"$work/verdicts.jsonl" &
    started+=($!)
}

started=()
stop_started() { [ ${#started[@]} -eq 0 ] || kill "${started[@]}" 2>/dev/null || true; }
trap stop_started EXIT
