# ssh into the Debian of prove_on_rootfs.sh, which sources this: its sshd on port 22 of the other network namespace.

passes inside systemctl start ssh
mkdir -p "$work/ssh"
rm -f "$work/ssh"/*
ssh-keygen -q -t ed25519 -N "" -f "$work/ssh/key"
install -d -m 0700 -o 1000 -g 1000 "$root/home/fitter/.ssh"
install -m 0600 -o 1000 -g 1000 "$work/ssh/key.pub" "$root/home/fitter/.ssh/authorized_keys"
sed "s/^/box /" "$root"/etc/ssh/ssh_host_ed25519_key.pub >"$work/ssh/known"
cat >"$work/ssh/config" <<CONFIG
Host box
    HostName 127.0.0.1
    HostKeyAlias box
    User fitter
    IdentityFile $work/ssh/key
    IdentitiesOnly yes
    UserKnownHostsFile $work/ssh/known
    StrictHostKeyChecking yes
CONFIG
# Breaks once the connection that copies (after 20 MB), or that installs (when it has copied the bundle).
cat >"$work/ssh/ssh" <<SSH
#!/usr/bin/env bash
connect=(ip netns exec $space $(command -v ssh) -F $work/ssh/config "\$@")
case "\${*: -1}" in
    "tar "*) [ ! -e $work/cut-copy ] || { rm $work/cut-copy; { head -c 20000000; sleep 10; } | timeout -s KILL 4 "\${connect[@]}"; exit 255; } ;;
    *install.sh*) [ ! -e $work/cut-install ] || { rm $work/cut-install; timeout -s KILL 6 "\${connect[@]}"; exit 255; } ;;
esac
exec "\${connect[@]}"
SSH
chmod +x "$work/ssh/ssh"
flash_over_ssh() { (PATH=$work/ssh:$PATH && flash --target box); }
