#!/usr/bin/env bash
# The main job on Arm, without an Arm machine: an arm64 Debian in user-mode emulation takes a flashed folder, installs
# it with its own install.sh, and watches a video until a verdict arrives at a broker.
#
#     sudo scripts/prove_on_arm.sh BUNDLE VIDEO [WORK]
#
# Needs root, and on Debian: apt-get install debootstrap qemu-user-static proot mosquitto mosquitto-clients. WORK
# (default build/arm) keeps the root file system. Takes a quarter of an hour on two cores. What it leaves out: systemd,
# which does not run here, so units are not started; the language model, whose wheel would have to be cross-compiled;
# the packages' own scripts, which would take an hour in the emulator. ONNX Runtime 1.23 is taken, since newer ones
# crash in Debian 12's emulator (not on hardware).
set -euo pipefail

. "$(dirname "$0")/proof.sh"
[ $# -ge 2 ] || usage
bundle=$(realpath "$1") video=$(realpath "$2") work=${3:-build/arm}
name=arm-proof port=${PORT:-18831}
qemu=$(command -v qemu-aarch64-static)
mkdir -p "$work"
work=$(realpath "$work")
root=$work/root

if [ ! -e "$root/.whole" ]; then
    debian "$root" bookworm python3,python3-venv --foreign --arch=arm64
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -C "$root" --keep-directory-symlink -xf -
    done
    # What the packages' scripts would do, as far as it is needed.
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
    ln -sf mawk "$root/usr/bin/awk"
    rm -rf "$root/proc" && mkdir "$root/proc"
    cp "$qemu" "$root/usr/bin/"
    touch "$root/.whole"
fi

echo "== flash"
site "/root/$(basename "$video")"
echo "onnxruntime==1.23.2" >"$work/constraints.txt"
tvau flash "$bundle" --device arm-dotprod --config "$work/site.toml" --out "$work/folder" \
    --no-llm --constraint "$work/constraints.txt"

echo "== install, emulated"
rm -rf "$root/root/folder" "$root/opt/tvau" "$root/etc/tvau"
cp -r "$work/folder" "$root/root/folder"
cp "$video" "$root/root/"
mkdir -p "$root/var/lib/tvau"
# There is no binfmt: proot names the emulator to each process that install.sh starts.
(cd / && env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    proot -q "$qemu" -0 -r "$root" -b /dev -b /proc -b /sys -w / /bin/sh /root/folder/install.sh --no-start)

echo "== watch, emulated"
broker
# One process, so that the emulator is named once; proot of Debian 12 does not know faccessat2, which typer needs.
unshare --mount sh -c '
    root=$1; shift
    for folder in proc dev sys; do mount --bind "/$folder" "$root/$folder"; done
    exec env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 /usr/sbin/chroot "$root" "$@"
' sh "$root" "/usr/bin/$(basename "$qemu")" /opt/tvau/current/venv/bin/python /opt/tvau/current/venv/bin/tvau \
    run --config /etc/tvau/site.toml --bundle /opt/tvau/current/bundle --backend onnxruntime 2>&1 | tee "$work/run.log"
sleep 1

count=$(wc -l <"$work/verdicts.jsonl")
echo "== $count verdicts from $(uname -m) emulating aarch64"
[ "$count" -gt 0 ] || { echo "error: no verdict arrived; $work/run.log tells more" >&2; exit 1; }
head -c 400 "$work/verdicts.jsonl"; echo
