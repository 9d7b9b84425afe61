#!/usr/bin/env bash
# Flashing in a clean Debian of this machine's own architecture, booted with its own systemd: what cannot be installed
# is refused, the first boot installs, the service watches a camera, updates come over ssh, and all of it goes again.
#
#     sudo scripts/prove_on_rootfs.sh BUNDLE VIDEO [WORK]
#
# Needs root, and on Debian: apt-get install debootstrap systemd-container iproute2 openssh-client mosquitto
# mosquitto-clients python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-bad. WORK
# (default build/rootfs) keeps the root file system. Ten to twenty minutes on two cores. SUITE names another Debian than
# bookworm, with PYTHON_THERE its Python. With a wheel of llama-cpp-python in WHEELS (default .wheels) the language model
# is taken along, and a verdict must come with an explanation. The Debian has no network: only a loopback, where our
# broker and an RTSP camera with VIDEO are. Not part of it: video devices, which a container does not have.
set -euo pipefail

. "$(dirname "$0")/proof.sh"
[ $# -ge 2 ] || usage
here=$(realpath "$(dirname "$0")")
bundle=$(realpath "$1") video=$(realpath "$2") work=${3:-build/rootfs}
name=rootfs-proof port=${PORT:-18841} camera_port=${CAMERA_PORT:-18842}
suite=${SUITE:-bookworm} python=${PYTHON_THERE:-3.11}
constraint=$here/../constraints.txt
wheels=$(realpath -m "${WHEELS:-.wheels}")
mkdir -p "$work"
work=$(realpath "$work")
root=$work/root
case $(uname -m) in
    x86_64) device=x86-avx2 other=raspberry-pi-5 ;;
    aarch64) device=arm-dotprod other=x86-avx2 ;;
    *) echo "error: no device's profile is for $(uname -m)" >&2; exit 1 ;;
esac
if ls "$wheels"/llama_cpp_python-*.whl >/dev/null 2>&1; then language=yes; else language=no; fi

began=$SECONDS last=$SECONDS
ok() { printf 'ok %4d s  %s\n' $((SECONDS - last)) "$*"; last=$SECONDS; }
die() { printf 'WRONG     %s\n' "$*" >&2; exit 1; }
# Run a command that must fail, and say why: refused WHAT_IT_SAYS COMMAND
refused() {
    local said=$1
    shift
    if "$@" >"$work/said" 2>&1; then cat "$work/said" >&2; die "'$*' went through; it should say: $said"; fi
    # Lines may be folded to the terminal's width.
    tr -s ' \n' ' ' <"$work/said" | grep -q -- "$said" || { cat "$work/said" >&2; die "'$*' did not say: $said"; }
}
passes() { "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; die "$*"; }; }
said() { grep -q -- "$1" "$work/said" || { cat "$work/said" >&2; die "it did not say: $1"; }; }

# --- the machine

space=tvau-proof
nspawn=
leader=
inside() {
    nsenter --target "$leader" --all -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        TVAU_HEALTH_SECONDS="${TVAU_HEALTH_SECONDS:-60}" "$@"
}
boot() {
    local own=() # where systemd does not run, there is nobody to register with
    [ -d /run/systemd/system ] || own=(--register=no --keep-unit)
    # bpf is what DevicePolicy= works with.
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --boot --directory="$root" --machine=$space "${own[@]}" \
        --network-namespace-path=/run/netns/$space --resolv-conf=off --timezone=off --link-journal=no --console=pipe \
        --system-call-filter=bpf --capability=CAP_BPF,CAP_NET_ADMIN </dev/null >>"$work/boot.log" 2>&1 &
    nspawn=$!
    for _ in $(seq 900); do
        kill -0 $nspawn 2>/dev/null || { tail -5 "$work/boot.log" >&2; die "systemd-nspawn does not start"; }
        if leader=$(pgrep --parent $nspawn --exact systemd); then
            case $(inside systemctl is-system-running 2>/dev/null) in running | degraded) return ;; esac
        fi
        sleep 1
    done
    die "it does not boot; see $work/boot.log"
}
halt() {
    [ -n "$nspawn" ] || return 0
    kill $nspawn 2>/dev/null || true # which asks for a shutdown
    wait $nspawn || true
    nspawn=
}
network() {
    ip netns del $space 2>/dev/null || true
    ip netns add $space
    ip -n $space link set lo up
}
clean_up() { halt; stop_started; ip netns del $space 2>/dev/null || true; }
trap clean_up EXIT

# Every file, with kind, owner, mode and contents, but for what changes by itself, and our own in home and /var/tmp.
listing() {
    (
        cd "$root"
        quiet=(./proc ./sys ./dev ./run ./tmp ./var/tmp ./home ./var/log ./var/backups './var/lib/systemd/*')
        skip=(-false)
        for place in "${quiet[@]}"; do skip+=(-o -path "$place"); done
        find . -xdev \( "${skip[@]}" \) -prune -o -printf '%P %M %U:%G %l\n'
        find . -xdev \( "${skip[@]}" \) -prune -o -type f -print0 | xargs -0 sha256sum | sed 's#\(.*\)  ./\(.*\)#\2 \1#'
        # The files before the last change of users and groups.
    ) | grep -v '^etc/\(passwd\|group\|shadow\|gshadow\|subuid\|subgid\)- ' | sort
}
same() { # same BEFORE AFTER WHAT
    diff "$1" "$2" >"$work/difference" || { cat "$work/difference" >&2; die "$3"; }
}

# --- the service

current() { readlink "$root/opt/tvau/current"; }
release() { sed -n "s/^RELEASE=//p" "$1/release.env"; }
main_pid() { inside systemctl show --property MainPID --value tvau.service; }
runs() { inside systemctl is-active --quiet tvau.service || die "tvau.service does not run: $1"; }
# A verdict that comes from now on: verdict SECONDS [WHAT IT HAS]
verdict() {
    local from
    from=$(wc -l <"$work/verdicts.jsonl")
    for _ in $(seq "$1"); do
        if grep -q -- "${2:-tvau.verdict/1}" < <(tail -n "+$((from + 1))" "$work/verdicts.jsonl"); then return; fi
        sleep 1
    done
    inside journalctl --namespace=tvau --no-pager --lines 30 >&2 || true
    die "no verdict with ${2:-anything} within $1 s"
}

# --- folders

flash() {
    local with=(--wheels "$wheels")
    [ $language = yes ] || with=(--no-llm)
    tvau flash "$bundle" --device $device --python "$python" --config "$work/site.toml" --wheel "$work"/tvau_edge-*.whl \
        --constraint "$constraint" "${with[@]}" "$@"
}
# The same bundle with a vision graph that no back end reads, and checksums that match.
spoil() {
    "${PYTHON:-python3}" - "$1" <<'PYTHON'
import hashlib, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
manifest = folder / "manifest.json"
facts = json.loads(manifest.read_text())
spoilt = [name for name in facts["files"] if name.startswith("vision") and name.endswith(("xml", "onnx"))]
assert spoilt
for name in spoilt:
    path = folder / name
    path.write_bytes(bytes(path.stat().st_size))
    facts["files"][name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
manifest.write_text(json.dumps(facts))
PYTHON
}

# =====================================================================================================================

echo "== a clean Debian $suite, $(uname -m)"
base=$work/debian-$suite
if [ ! -e "$base.whole" ]; then
    debian "$base" "$suite" "python3,python3-venv,systemd,systemd-sysv,libgomp1,openssh-server,sudo"
    touch "$base.whole"
fi
rm -rf "$root"
cp -a --reflink=auto "$base" "$root"
chroot "$root" useradd --create-home --shell /bin/bash fitter
echo "fitter ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/fitter"
: >"$work/boot.log"
ok "made"

echo "== folders"
rm -f "$work"/tvau_edge-*.whl
passes "${PYTHON:-python3}" -m pip wheel --quiet --no-deps --wheel-dir "$work" "$here/.."
site "rtsp://127.0.0.1:$camera_port/clip"
mkdir -p "$work/empty"
no_rootfs=(tvau flash "$bundle" --config "$work/site.toml" --no-llm)
refused "is no root file system" "${no_rootfs[@]}" --device $device --rootfs "$work/empty"
refused "is for $(uname -m)" "${no_rootfs[@]}" --device $other --rootfs "$root"
refused "is for $(uname -m).*aarch64\|no etc/nv_tegra_release" "${no_rootfs[@]}" --device jetson-orin-nano-8gb --rootfs "$root"
refused "lacks python3.99 and python3.99-venv: sudo chroot" "${no_rootfs[@]}" --device $device --python 3.99 --rootfs "$root"
[ ! -e "$root/opt/tvau" ] || die "a refused flash left something in $root"
ok "a folder that is no root file system, one of another machine, Jetson or Python: refused, nothing written"
passes flash --out "$work/one"
echo "# two" >>"$work/site.toml"
passes flash --out "$work/two"
rm -rf "$work/bad-bundle"
cp -r "$bundle" "$work/bad-bundle"
spoil "$work/bad-bundle"
(bundle=$work/bad-bundle && passes flash --out "$work/bad")
sed -i '$d' "$work/site.toml"
one=$(release "$work/one") two=$(release "$work/two") bad=$(release "$work/bad")
mkdir -p "$root/var/tmp"
for folder in one bad; do cp -r "$work/$folder" "$root/var/tmp/"; done
ok "three releases: $one, $two, and $bad with a graph that does not load"

echo "== by hand"
network
broker ip netns exec $space
ip netns exec $space /usr/bin/python3 "$here/../tests/runtime/cameras/rtsp_server.py" "$camera_port" "$video" >"$work/camera.log" 2>&1 &
started+=($!)
boot
listing >"$work/clean"
ok "booted without us"

hidden=$root/usr/lib/python$python/ensurepip
mv "$hidden" "$work/ensurepip"
refused "python$python has no venv: apt install python$python-venv" inside /var/tmp/one/install.sh
mv "$work/ensurepip" "$hidden"
inside mkdir /opt/tvau
inside mount -t tmpfs -o size=200M tmpfs /opt/tvau
refused "/opt/tvau has 200 MiB free, .* MiB are needed" inside /var/tmp/one/install.sh
inside umount /opt/tvau
inside rmdir /opt/tvau
listing >"$work/after"
same "$work/clean" "$work/after" "an installation that was refused left something"
ok "no venv, no room on the disk: refused, nothing changed"
if [ $language = yes ]; then
    gomp=$(cd "$root" && ls usr/lib/*/libgomp.so.1)
    mv "$root/$gomp" "$work/libgomp.so.1"
    refused "llama_cpp does not load (.*libgomp.so.1.*): apt install libgomp1" inside /var/tmp/one/install.sh
    mv "$work/libgomp.so.1" "$root/$gomp"
    [ ! -e "$root/opt/tvau/current" ] || die "a release whose language model does not load was switched to"
    ok "a library of the system that the language model needs and is not there: refused"
fi

inside setsid /var/tmp/one/install.sh >"$work/said" 2>&1 &
cut=$!
until ls "$root/opt/tvau/releases/$one"/venv/lib/python*/site-packages/numpy >/dev/null 2>&1; do sleep 0.2; done
group=$(pgrep --ns "$leader" --nslist pid --full --oldest '/bin/sh /var/tmp/one/install.sh')
kill -9 -- "-$group"
wait $cut 2>/dev/null || true
[ ! -e "$root/opt/tvau/releases/$one/.complete" ] || die "it was killed too late"
passes inside sh -c 'umask 077; exec /var/tmp/one/install.sh'
said "$one runs"
runs "after install.sh was killed and run again"
ok "install.sh killed while it installed wheels, run again (umask 077): runs"
verdict 60
ok "a verdict arrived at the broker"
if [ $language = yes ]; then
    verdict 120 '"explanation":"'
    ok "and one with an explanation"
fi

pid=$(main_pid)
status=$(inside cat "/proc/$pid/status")
for line in "CapEff:.0000000000000000" "CapBnd:.0000000000000000" "NoNewPrivs:.1" "Seccomp:.2"; do
    grep -q "$line" <<<"$status" || die "the service's process is not as the unit says: $line"
done
[ "$(inside stat -c %U "/proc/$pid")" = tvau ] || die "the service does not run as tvau"
refused "Read-only file system" nsenter --target "$leader" --all -- nsenter --target "$pid" --mount touch /usr/tvau /etc/tvau/x
[ "$(inside stat -c '%U %G %a' /etc/tvau/site.toml)" = "root tvau 640" ] || die "site.toml is readable by others"
passes inside journalctl --namespace=tvau --unit tvau --no-pager
said "tvau\[.*camera street"
# A device that is there, and not among DeviceAllow=.
refused "Operation not permitted" inside sh -c \
    'echo $$ >/sys/fs/cgroup/system.slice/tvau.service/cgroup.procs && exec cat /dev/net/tun'
said=$(inside find /var/lib/tvau ! -name 'outbox.db*' ! -name '*.safetensors' ! -path /var/lib/tvau)
[ -z "$said" ] || die "the service wrote what is not its own: $said"
ok "runs as tvau, without capabilities, on a read-only system, with no other devices, with its own journal"

part() { grep '^opt/tvau/\|^etc/\|^var/lib/tvau ' "$1" | grep -v __pycache__; }
listing >"$work/after" && part "$work/after" >"$work/first"
passes inside /var/tmp/one/install.sh
said "release $one is there already"
listing >"$work/after" && part "$work/after" >"$work/second"
same "$work/first" "$work/second" "a second run changed something"
runs "after a second run"
ok "install.sh run a second time: not a file changed"

passes inside /opt/tvau/current/install.sh --remove --purge
listing >"$work/after"
same "$work/clean" "$work/after" "--remove --purge left something"
[ -z "$(inside systemctl list-units --all --plain --no-legend '*tvau*')" ] || die "--remove left a unit loaded"
! ls -d "$root"/var/log/journal/*.tvau 2>/dev/null || die "--purge left a journal"
ok "removed and purged: each file and unit is as before"
halt

echo "== at the first boot"
passes flash --rootfs "$root"
[ -e "$root/opt/tvau/incoming/install.sh" ] || die "no folder in the root file system"
boot
said=$(inside systemctl --failed --plain --no-legend)
[ -z "$said" ] || { inside journalctl --no-pager -u tvau-install >&2; die "failed at the first boot: $said"; }
runs "after the first boot"
[ "$(current)" = "releases/$one" ] || die "$(current) is current, not $one"
[ ! -e "$root/opt/tvau/incoming" ] || die "the folder stays on the disk"
[ ! -e "$root/etc/systemd/system/tvau-install.service" ] || die "tvau-install.service would run again"
ok "installed and running"
verdict 60
ok "a verdict arrived"
halt
boot
runs "after the second boot"
verdict 60
ok "booted again: a verdict arrived"

echo "== updates"
. "$here/proof_ssh.sh"
echo "# two" >>"$work/site.toml"
touch "$work/cut-copy"
refused "could not copy the folder.*what ran there before runs on" flash_over_ssh
[ "$(current)" = "releases/$one" ] || die "a copy that was cut off changed current"
[ "$(main_pid)" != 0 ] || die "a copy that was cut off stopped the service"
ok "ssh cut while it copied: the old release runs on"
touch "$work/cut-install"
refused "could not install.*may be run again" flash_over_ssh
for _ in $(seq 120); do
    [ ! -e "$root/opt/tvau/releases/$two/.good" ] || break
    sleep 1
done
[ -e "$root/opt/tvau/releases/$two/.good" ] || die "install.sh did not go on when the connection broke"
ok "ssh cut while it installed: install.sh goes on to the end"
passes flash_over_ssh
runs "after the update"
[ "$(current)" = "releases/$two" ] || die "$(current) is current, not $two"
[ -e "$root/opt/tvau/releases/$one/.good" ] || die "the release before was not kept"
[ "$(readlink "$root/opt/tvau/before")" = "releases/$one" ] || die "before is not $one"
! grep -q "# two" "$root/etc/tvau/site.toml" || die "the configuration was overwritten"
grep -q "# two" "$root/etc/tvau/site.toml.new" || die "the new configuration is not there"
[ -z "$(ls -d "$root"/var/tmp/tvau-* 2>/dev/null)" ] || die "the folder was not cleared up"
verdict 60
ok "run again: $two runs, $one is kept, and the configuration; a verdict arrived"

TVAU_HEALTH_SECONDS=12 refused "$bad was not healthy within 12 s: $two runs again" inside /var/tmp/bad/install.sh
[ "$(current)" = "releases/$two" ] || die "$(current) is current, not $two"
runs "after an update that was taken back"
verdict 60
inside journalctl --namespace=tvau --unit tvau --no-pager | grep -i "error" | tail -1 | cut -c1-200 | sed 's/^/           /'
ok "an update whose graph does not load: taken back, $two runs; a verdict arrived"

echo "== removal"
inside sh -c 'echo "MQTT=secret" >/etc/tvau/secrets.env'
passes inside /opt/tvau/current/install.sh --remove
for file in etc/tvau/site.toml etc/tvau/secrets.env var/lib/tvau/outbox.db; do
    [ -e "$root/$file" ] || die "--remove took $file"
done
[ ! -e "$root/opt/tvau" ] || die "--remove left /opt/tvau"
[ -z "$(inside systemctl list-units --all --plain --no-legend '*tvau*')" ] || die "--remove left a unit loaded"
ok "removed: configuration, secrets and verdicts stay"
passes inside /var/tmp/one/install.sh
runs "after it was installed again"
passes inside /opt/tvau/current/install.sh --remove
passes inside /var/tmp/one/install.sh --remove --purge
listing >"$work/after"
same "$work/clean" "$work/after" "--purge left something"
ok "installed again, removed, then purged: each file is as before"
echo "== all of it holds, $((SECONDS - began)) s"
