#!/bin/sh
# Installs this folder's release of tvau-edge, or removes what is installed. Safe to run again, and after it was cut off.
#
#     ./install.sh [--no-start] [--any-device]
#     ./install.sh --remove [--purge]
#
# A release lies in /opt/tvau/releases/<id>; /opt/tvau/current points to the one that runs. An update that is not
# healthy in time is taken back: the one before runs on. Configuration in /etc/tvau and verdicts in /var/lib/tvau stay,
# also when it is removed, unless --purge is given. TVAU_ROOT installs below another root, for tests.
set -eu
unset PYTHONPATH PYTHONHOME

here=$(cd "$(dirname "$0")" && pwd)
root=${TVAU_ROOT:-}
base=$root/opt/tvau
units=$root/etc/systemd/system
health_seconds=${TVAU_HEALTH_SECONDS:-60}
start=yes any_device=no remove=no purge=no

say() { printf '%s\n' "tvau: $*"; }
fail() { printf '%s\n' "tvau: error: $*" >&2; exit 1; }

for argument in "$@"; do
    case $argument in
        --no-start) start=no ;;
        --any-device) any_device=yes ;;
        --remove) remove=yes ;;
        --purge) purge=yes ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root: sudo $0"

if [ "$remove" = yes ]; then
    for unit in tvau tvau-engines tvau-install; do
        if [ -e "$units/$unit.service" ]; then
            systemctl disable --now "$unit.service" || true
            rm -f "$units/$unit.service"
        fi
    done
    systemctl daemon-reload || true
    rm -rf "$base" "$root/var/cache/tvau" "$root/etc/systemd/journald@tvau.conf"
    if [ "$purge" = yes ]; then
        rm -rf "$root/etc/tvau" "$root/var/lib/tvau"
        id tvau >/dev/null 2>&1 && userdel tvau || true
        say "removed, with its configuration and the verdicts that waited"
    else
        say "removed; /etc/tvau and /var/lib/tvau stay (--purge removes them)"
    fi
    exit 0
fi

# What this folder is for, from release.env: RELEASE, DEVICE, MACHINE, PYTHON, L4T, COMPATIBLE, EXTRAS, ENGINES, KILOBYTES.
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

mkdir -p "$base/releases"
free=$(df -Pk "$base" | awk 'NR == 2 { print $4 }')
[ "$free" -ge "$KILOBYTES" ] || fail "$base has $((free / 1024)) MiB free, $((KILOBYTES / 1024)) MiB are needed"

target=$base/releases/$RELEASE
if [ -e "$target/.complete" ]; then
    say "release $RELEASE is there already"
else
    rm -rf "$target"
    mkdir -p "$target"
    say "copying the bundle"
    cp -R "$here/bundle" "$target/bundle"
    say "installing the wheels"
    # TensorRT comes with JetPack, as a package of the system's Python.
    "$python" -m venv ${ENGINES:+--system-site-packages} "$target/venv"
    "$target/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
        --find-links "$here/wheelhouse" "tvau-edge$EXTRAS" ||
        fail "the wheels do not install with python$PYTHON; nothing was changed but $target, which the next try removes"
    "$target/venv/bin/tvau" --help >/dev/null || fail "tvau does not start from $target/venv"
    touch "$target/.complete"
fi

if ! id tvau >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/tvau --no-create-home --shell /usr/sbin/nologin tvau
fi
for group in video render; do
    if getent group "$group" >/dev/null 2>&1; then usermod --append --groups "$group" tvau; fi
done

mkdir -p "$root/etc/tvau" "$units"
if [ ! -e "$root/etc/tvau/site.toml" ]; then
    cp "$here/site.toml" "$root/etc/tvau/site.toml"
elif ! cmp -s "$here/site.toml" "$root/etc/tvau/site.toml"; then
    cp "$here/site.toml" "$root/etc/tvau/site.toml.new"
    say "/etc/tvau/site.toml was kept; the new one is beside it as site.toml.new"
fi
chmod 0644 "$root/etc/tvau/site.toml"
cp "$here/units/journald@tvau.conf" "$root/etc/systemd/journald@tvau.conf"

before=$(readlink "$base/current" 2>/dev/null || true)
kept=$base/units.before
rm -rf "$kept"
mkdir -p "$kept"
for unit in tvau tvau-engines; do
    if [ -e "$units/$unit.service" ]; then cp "$units/$unit.service" "$kept/"; fi
    if [ -e "$here/units/$unit.service" ]; then cp "$here/units/$unit.service" "$units/"; else rm -f "$units/$unit.service"; fi
done
ln -sfn "releases/$RELEASE" "$base/current"

if [ "$start" = no ]; then
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
    for old in "$base"/releases/*; do
        case ${old##*/} in "$RELEASE" | "${before##*/}") ;; *) rm -rf "$old" ;; esac
    done
    rm -f "$units/tvau-install.service" "$units/multi-user.target.wants/tvau-install.service"
    [ "$here" != "$base/incoming" ] || rm -rf "$here"
    say "$RELEASE runs"
    exit 0
fi

if [ -n "$before" ] && [ "$before" != "releases/$RELEASE" ] && [ -e "$base/$before/.complete" ]; then
    ln -sfn "$before" "$base/current"
    for unit in tvau tvau-engines; do
        rm -f "$units/$unit.service"
        if [ -e "$kept/$unit.service" ]; then cp "$kept/$unit.service" "$units/"; fi
    done
    systemctl daemon-reload
    systemctl restart tvau.service || true
    fail "$RELEASE was not healthy within $health_seconds s: ${before##*/} runs again; journalctl --namespace=tvau -u tvau tells why"
fi
fail "$RELEASE is installed, but was not healthy within $health_seconds s: journalctl --namespace=tvau -u tvau tells why"
