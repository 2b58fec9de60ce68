#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# usage: selftest.sh
#
# Check what `run` promises: statuses, output, shares, what the guest is like.
# Prints TAP; exits with 0 if all is well.

set -uo pipefail
vm_dir=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0 failures=0

ok() {
	local name=$1 status
	shift
	"$@"
	status=$?
	((++count))
	if ((status == 0)); then
		echo "ok $count - $name"
	else
		((++failures))
		echo "not ok $count - $name"
	fi
}

# Boot with the given arguments; output goes to $work/NAME.{out,err,status}.
boot() {
	local name=$1
	shift
	(cd "$work/share" && "$vm_dir/run" --share "$work/share" "$@") \
		>"$work/$name.out" 2>"$work/$name.err"
	echo $? >"$work/$name.status"
	# from the second on, with what the first has built
	export LOOP_PARSER_NO_BUILD=1
}

status_is() {
	[[ $(<"$work/$1.status") == "$2" ]] && return
	echo "# status is $(<"$work/$1.status"), should be $2"
	sed 's/^/# /' "$work/$1.err" | tail -n 20
	return 1
}

err_has() {
	grep -q -- "$2" "$work/$1.err"
}

# A fact that the guest wrote down.
fact_is() {
	local fact
	fact=$(sed -n "s/^$1=//p" "$work/share/facts")
	[[ $fact == "$2" ]] || { echo "# $1 is '$fact', should be '$2'"; return 1; }
}

# Runs in the guest.
cat_guest_script() {
	cat <<'EOF'
fact() { echo "$1=$2" >>facts; }
modprobe dummy && fact modprobe yes
fact release "$(uname -r)"
fact cwd "$PWD"
fact user "$(id -u)"
fact variable "$LP_SELFTEST"
fact processors "$(nproc)"
fact taint "$(cat /proc/sys/kernel/tainted)"
./program && fact exec yes
python3 - <<'PY' && fact mmap yes
import mmap
with open("mapped", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    m[0:6] = b"guest!"
    m.flush()
PY
truncate -s 64M /tmp/disk
printf 'label: gpt\nsize=20M,uuid=11111111-2222-3333-4444-555555555555\n' | sfdisk -q /tmp/disk
insmod "/lib/modules/$(uname -r)/kernel/drivers/block/loop.ko" # the stock one
fact loop "$(losetup -Pf --show /tmp/disk)"
udevadm settle
sleep 0.5
udevadm settle
fact link "$(readlink -f /dev/disk/by-partuuid/11111111-2222-3333-4444-555555555555)"
mkfs.ext4 -q /dev/loop0p1 && mkdir /mnt/x && mount /dev/loop0p1 /mnt/x && fact ext4 yes
cat input
cat input >&2
echo reopened >/dev/stderr
echo reopened >/dev/stdout
sleep 1000 &
exit 37
EOF
}

prepare_share() {
	mkdir "$work/share"
	cat_guest_script >"$work/share/script"
	head -c 3000000 /dev/urandom >"$work/share/input"
	printf 'hello, host' >"$work/share/mapped"
	cp /bin/true "$work/share/program"
	{ cat "$work/share/input" && echo reopened; } >"$work/expected"
}

test_ordinary() {
	LP_SELFTEST=$'a b\n"c"$' boot ordinary -- bash ./script
	ok "the command's exit status comes through" status_is ordinary 37
	ok "binary standard output comes through" cmp "$work/expected" "$work/ordinary.out"
	ok "binary standard error comes through" cmp "$work/expected" "$work/ordinary.err"
	ok "kernel release" fact_is release "$(<"$(cache)/kernels/stock/release")"
	ok "current directory" fact_is cwd "$work/share"
	ok "user is root" fact_is user 0
	ok "LP_ variables come through" fact_is variable 'a b'
	ok "two processors" fact_is processors 2
	ok "a program on a share runs" fact_is exec yes
	ok "a file on a share can be mapped" fact_is mmap yes
	ok "what the guest maps and writes is on the host" \
		cmp "$work/share/mapped" <(printf 'guest! host')
	ok "modprobe" fact_is modprobe yes
	ok "losetup with the stock driver" fact_is loop /dev/loop0
	ok "udev makes links for partitions" fact_is link /dev/loop0p1
	ok "a file system on a partition" fact_is ext4 yes
}

cache() {
	echo "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/loop-parser"
}

test_failures() {
	boot panic -- sh -c 'echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 60'
	ok "a panic is 120" status_is panic 120
	ok "output before a panic comes through" grep -qx before "$work/panic.out"
	ok "the console of a panic is shown" err_has panic 'Kernel panic'
	boot vanish -- busybox poweroff -f &
	boot timeout --timeout 20 -- sleep 1000
	ok "a timeout is 124" status_is timeout 124
	wait
	ok "a guest that vanishes is 122" status_is vanish 122
}

# Wait until a command succeeds, or the machine in the background has ended.
until_works() {
	until "$@"; do
		[[ $(jobs -rp) ]] || return 1
		sleep 0.1
	done
}

# Make QEMU of this script's machine abort, as soon as it is there.
abort_qemu() {
	until_works pkill -ABRT -f "^qemu-system-x86_64 .*$work/share"
}

test_abort() {
	boot early -- sh -c 'echo ran' &
	abort_qemu
	wait
	ok "if QEMU aborts, the guest is booted again" status_is early 0
	ok "this is said" err_has early 'QEMU aborted .*; booting again (1)'
	ok "the command runs once" cmp <(echo ran) "$work/early.out"
	boot late -- sh -c 'echo ran; sleep 1000' &
	until_works grep -qs ran "$work/late.out"
	abort_qemu
	wait
	ok "if QEMU aborts after the command has started, it is not" status_is late 122
	ok "the command has run once" cmp <(echo ran) "$work/late.out"
}

test_warning() {
	boot warning --icount -- \
		sh -c 'echo "WARNING: drivers/x.c:1 at x+0x1/0x2, CPU#0: x/1" >/dev/kmsg; nproc'
	ok "a kernel warning is 121" status_is warning 121
	ok "the warning is shown" err_has warning 'console: .*drivers/x.c:1'
	ok "--icount has one processor" grep -qx 1 "$work/warning.out"
}

test_usage() {
	boot no-command
	ok "no command is 125" status_is no-command 125
	boot no-kernel --kernel nonesuch -- true
	ok "an unknown kernel is 125" status_is no-kernel 125
	ok "an unknown kernel is named" err_has no-kernel nonesuch
	boot no-share --share /nonesuch -- true
	ok "a missing share is 125" status_is no-share 125
}

prepare_share
test_ordinary
test_failures
test_abort
test_warning
test_usage
echo "1..$count"
((failures == 0))
