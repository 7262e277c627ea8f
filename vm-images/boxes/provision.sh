#!/bin/sh
# Run in the guest by Vagrant: takes over the keys that Desk has put into /var/lib/desk/seed.
set -e
seed=/var/lib/desk/seed
umask 077
mkdir -p $seed /root/.ssh
chmod 700 $seed
if [ -s $seed/authorized_keys ]; then cat $seed/authorized_keys >/root/.ssh/authorized_keys; fi
if [ -s $seed/ssh_host_ed25519_key ] &&
  ! cmp -s $seed/ssh_host_ed25519_key /etc/ssh/ssh_host_ed25519_key; then
  chmod 600 $seed/ssh_host_ed25519_key
  ssh-keygen -y -f $seed/ssh_host_ed25519_key >$seed/ssh_host_ed25519_key.pub
  cat $seed/ssh_host_ed25519_key >/etc/ssh/ssh_host_ed25519_key
  cat $seed/ssh_host_ed25519_key.pub >/etc/ssh/ssh_host_ed25519_key.pub
  # Only the listener reads the key again; this session goes on.
  kill -HUP "$(cat /run/sshd.pid)"
fi
sync
