#!/bin/sh
# Installs this folder's release of tvau-edge, or removes what is installed. Safe to run again, and after it was cut off.
#
#     ./install.sh [--no-start] [--any-device]
#     ./install.sh --remove [--purge]
#
# A release lies in /opt/tvau/releases/<id>; /opt/tvau/current points to the one that runs, with this script in it, and
# /opt/tvau/before to the one that an update that is not healthy in time goes back to. Configuration in /etc/tvau and
# verdicts in /var/lib/tvau stay, also when it is removed, unless --purge is given. TVAU_ROOT installs below another
# root, for tests.
set -eu
umask 022
unset PYTHONPATH PYTHONHOME

here=$(cd "$(dirname "$0")" && pwd)
root=${TVAU_ROOT:-}
base=$root/opt/tvau
units=$root/etc/systemd/system
health_seconds=${TVAU_HEALTH_SECONDS:-60}
start=yes any_device=no remove=no purge=no

# A connection that breaks must not leave it half-way: nobody listens then, and it goes on to the end.
trap '' HUP PIPE
say() { printf '%s\n' "tvau: $*" || true; } 2>/dev/null
fail() { printf '%s\n' "tvau: error: $*" >&2 || true; exit 1; }

for argument in "$@"; do
    case $argument in
        --no-start) start=no ;;
        --any-device) any_device=yes ;;
        --remove) remove=yes ;;
        --purge) purge=yes ;;
        *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"
# One at a time; what a killed one started, such as pip, may run on for a while, and holds the lock as well.
exec 9<"$root/"
flock --wait "${TVAU_LOCK_SECONDS:-60}" 9 || fail "another install.sh runs; wait for it, and run this again"

if [ "$remove" = yes ]; then
    for unit in tvau tvau-engines tvau-install; do
        if [ -e "$units/$unit.service" ]; then
            systemctl disable --now "$unit.service" || true
            rm -f "$units/$unit.service"
        fi
    done
    for unit in systemd-journald@tvau.service systemd-journald@tvau.socket systemd-journald-varlink@tvau.socket; do
        systemctl stop "$unit" 2>/dev/null || true
    done
    systemctl daemon-reload || true
    systemctl reset-failed 'tvau*' 2>/dev/null || true
    rm -rf "$base" "$root/var/cache/tvau" "$root/etc/systemd/journald@tvau.conf"
    if [ "$purge" = yes ]; then
        rm -rf "$root/etc/tvau" "$root/var/lib/tvau" "$root"/var/log/journal/*.tvau "$root"/run/log/journal/*.tvau
        id tvau >/dev/null 2>&1 && userdel tvau || true
        say "removed, with its configuration, its log and the verdicts that waited"
    else
        say "removed; /etc/tvau, /var/lib/tvau, the log and the user stay (--purge removes them)"
    fi
    exit 0
fi

# What this folder is for, from release.env: RELEASE, DEVICE, MACHINE, PYTHON, L4T, COMPATIBLE, EXTRAS, MODULES,
# ENGINES, KILOBYTES.
[ -f "$here/release.env" ] || fail "$here/release.env is missing: the folder was not copied whole"
. "$here/release.env"

(cd "$here" && sha256sum --check --quiet SHA256SUMS) ||
    fail "$here is damaged, or was not copied whole: copy it again, nothing was changed"
[ "$(uname -m)" = "$MACHINE" ] || fail "this folder is for $MACHINE, the machine is $(uname -m)"

if [ "$any_device" = no ] && [ -n "$COMPATIBLE" ]; then
    tree=$root/proc/device-tree/compatible
    seen=$(tr '\0' ' ' <"$tree" 2>/dev/null || true)
    known=no
    for name in $COMPATIBLE; do
        case " $seen" in *"$name"*) known=yes ;; esac
    done
    [ "$known" = yes ] || fail "this folder is for $DEVICE, the device tree says '${seen:-nothing}' (--any-device installs it here all the same)"
fi
if [ -n "$L4T" ]; then
    release=$(sed -n '1s/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' "$root/etc/nv_tegra_release" 2>/dev/null || true)
    case "$release." in
        "$L4T".*) ;;
        *) fail "this folder is for Jetson Linux $L4T, this is '${release:-unknown}': flash that JetPack, or make the folder again with --jetpack" ;;
    esac
fi
python=$(command -v "python$PYTHON") || fail "python$PYTHON is not installed: apt install python$PYTHON python$PYTHON-venv"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "python$PYTHON has no venv: apt install python$PYTHON-venv"

# What an update that was not healthy, or was cut off, left behind is in the way of this one.
running=$(readlink "$base/current" 2>/dev/null || true)
before=$(readlink "$base/before" 2>/dev/null || true)
target=$base/releases/$RELEASE
prune() {
    for old in "$base"/releases/*; do
        case releases/${old##*/} in "releases/$RELEASE" | "$1" | "$2") ;; *) rm -rf "$old" ;; esac
    done
}
prune "$running" "$before"
[ -e "$target/.complete" ] || rm -rf "$target"

if [ -e "$target/.complete" ]; then
    say "release $RELEASE is there already"
else
    disk=$base
    while [ ! -d "$disk" ]; do disk=$(dirname "$disk"); done
    free=$(df -Pk "$disk" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$KILOBYTES" ] ||
        fail "$base has $((free / 1024)) MiB free, $((KILOBYTES / 1024)) MiB are needed; nothing was changed"
    mkdir -p "$target"
    say "copying the bundle"
    cp -R "$here/bundle" "$here/units" "$here/install.sh" "$target/"
    say "installing the wheels"
    # TensorRT comes with JetPack, as a package of the system's Python.
    "$python" -m venv ${ENGINES:+--system-site-packages} "$target/venv"
    "$target/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
        --find-links "$here/wheelhouse" "tvau-edge$EXTRAS" ||
        fail "the wheels do not install with python$PYTHON; nothing was changed but $target, which the next try removes"
    "$target/venv/bin/tvau" --help >/dev/null || fail "tvau does not start from $target/venv"
    for module in $MODULES; do
        said=$("$target/venv/bin/python" -c "import tvau_edge.runtime, $module" 2>&1) || {
            case $said in *libgomp.so.1*) hint="apt install libgomp1" ;; *) hint="install what is missing" ;; esac
            fail "$module does not load ($(printf '%s' "$said" | tail -n 1)): $hint, and run this again"
        }
    done
    sync # a cut of power must not leave a release that only looks complete
    touch "$target/.complete"
fi

if ! id tvau >/dev/null 2>&1; then
    useradd --system --user-group --home-dir /var/lib/tvau --no-create-home --shell /usr/sbin/nologin tvau
fi
for group in video render; do
    if getent group "$group" >/dev/null 2>&1; then usermod --append --groups "$group" tvau; fi
done

mkdir -p "$root/etc/tvau" "$units"
# The addresses of cameras hold passwords: for root and the service alone.
put_site() {
    (umask 077 && cp "$here/site.toml" "$1.part")
    chgrp tvau "$1.part"
    chmod 0640 "$1.part"
    mv "$1.part" "$1"
}
if [ ! -e "$root/etc/tvau/site.toml" ]; then
    put_site "$root/etc/tvau/site.toml"
elif ! cmp -s "$here/site.toml" "$root/etc/tvau/site.toml"; then
    put_site "$root/etc/tvau/site.toml.new"
    say "/etc/tvau/site.toml was kept; the new one is beside it as site.toml.new"
fi
cp "$here/units/journald@tvau.conf" "$root/etc/systemd/journald@tvau.conf"

# Pointers change at once, so that a cut of power leaves the old or the new.
point() {
    ln -sfn "$2" "$base/$1.part"
    mv -T "$base/$1.part" "$base/$1"
}
put_units() {
    for unit in tvau tvau-engines; do
        if [ -e "$1/$unit.service" ]; then cp "$1/$unit.service" "$units/"; else rm -f "$units/$unit.service"; fi
    done
}
# The way back leads to a release that was healthy: not to this one, nor to one whose update was cut off.
if [ -n "$running" ] && [ "$running" != "releases/$RELEASE" ] && { [ -e "$base/$running/.good" ] || [ -z "$before" ]; }; then
    before=$running
    point before "$before"
fi
point current "releases/$RELEASE"
put_units "$target/units"

if [ "$start" = no ]; then
    touch "$target/.good" # whoever starts it looks after it
    say "installed $RELEASE; systemctl enable --now tvau starts it"
    exit 0
fi
systemctl daemon-reload

# Active, and not started again by systemd, at each of the last looks.
healthy() {
    looks=0 waited=0
    while [ "$waited" -lt "$health_seconds" ]; do
        if systemctl is-active --quiet tvau.service && [ "$(systemctl show --property NRestarts --value tvau.service)" = 0 ]; then
            looks=$((looks + 1))
            [ "$looks" -lt 5 ] || return 0
        else
            looks=0
        fi
        sleep "${TVAU_LOOK_SECONDS:-2}"
        waited=$((waited + 2))
    done
    return 1
}

systemctl enable tvau.service
if [ -n "$ENGINES" ]; then
    say "building engines: tens of minutes on a small board; news on the topic <root>/engines"
    systemctl enable tvau-engines.service
    systemctl restart tvau-engines.service || say "the engines were not built: journalctl --namespace=tvau -u tvau-engines"
fi
systemctl reset-failed tvau.service 2>/dev/null || true
systemctl restart tvau.service || true
if healthy; then
    touch "$target/.good"
    prune "$before" ""
    rm -f "$units/tvau-install.service" "$units/multi-user.target.wants/tvau-install.service"
    [ "$here" != "$base/incoming" ] || rm -rf "$here"
    say "$RELEASE runs"
    exit 0
fi

if [ -n "$before" ] && [ "$before" != "releases/$RELEASE" ] && [ -e "$base/$before/.complete" ]; then
    point current "$before"
    put_units "$base/$before/units"
    systemctl daemon-reload
    systemctl restart tvau.service || true
    fail "$RELEASE was not healthy within $health_seconds s: ${before##*/} runs again; journalctl --namespace=tvau -u tvau tells why"
fi
fail "$RELEASE is installed, but was not healthy within $health_seconds s: journalctl --namespace=tvau -u tvau tells why"
