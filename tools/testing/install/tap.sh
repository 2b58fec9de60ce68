# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts: TAP lines, and what depmod's files say.

repo=$(realpath "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/../../..")
log=$(mktemp)
failures=0 count=0

# $1: what is tested; the rest: a command that has to succeed.
ok() {
	local name=$1
	shift
	count=$((count + 1))
	if "$@"; then
		echo "ok $count $name"
	else
		echo "not ok $count $name"
		tail -n 30 "$log" | sed 's/^/# /'
		failures=$((failures + 1))
	fi
}

# Run a command, its output kept for the report of a failure.
quietly() {
	echo "+ $*" >>"$log"
	"$@" >>"$log" 2>&1 </dev/null
}

log_has() {
	grep -qF -- "$1" "$log"
}

# Succeed if `modprobe $1` would load exactly the files $2… below /lib/modules,
# their paths as regular expressions.
loads() {
	local name=$1 found wanted
	shift
	found=$(modprobe -S "$release" --ignore-install --show-depends "$name" 2>>"$log" |
		sed -n 's,^insmod .*/lib/modules/[^/]*/\([^ ]*\).*,\1,p')
	wanted=$(printf '%s\n' "$@")
	echo "modprobe $name would load: $found" >>"$log"
	[[ $found =~ ^$wanted$ ]]
}

finish() {
	echo "1..$count"
	rm -f "$log"
	exit $((failures > 0))
}
