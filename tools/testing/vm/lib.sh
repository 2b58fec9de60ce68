# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Paths and small helpers shared by the scripts in this directory.

vm_dir=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
repo=$(realpath "$vm_dir/../../..")
cache=$(realpath -m "${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/loop-parser")

# A setup error is never to be mistaken for the exit status of a command.
die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 125
}

require_root() {
	[[ $EUID -eq 0 ]] || die "must run as root (it mounts and makes a chroot)"
	# Paths end up in mount options and in QEMU's.
	[[ $cache$repo != *[:,\\\"[:space:]]* ]] ||
		die "path with a space or one of : , \\ \": $cache or $repo"
	mkdir -p "$cache"/{stage,kernels,logs,locks,modules,mnt,cargo}
}

# Print the comment at the top of a script as its help text.
print_help() {
	sed -n '3,/^[^#]/{/^#/!d; s/^# \{0,1\}//; p}' "$0"
}

# Let `prepare` keep what this process, or what it starts, is using.
hold_cache() {
	exec 9>>"$cache/locks/use"
	flock --shared 9
}

# Print a short key for what is read from standard input.
key_of() {
	sha256sum | cut -c1-16
}

# Make symbolic link $2 point to $1, replacing it in one step.
point_to() {
	ln -sfn "$1" "$2.$$"
	mv -T "$2.$$" "$2"
}

# Print the identity of cached stage $1, to be part of a later one's key.
stage_id() {
	basename "$(realpath "$cache/$1")"
}

# Print $1 seconds, given in microseconds, rounded to a tenth.
seconds() {
	printf '%d.%d' $(($1 / 1000000)) $(($1 / 100000 % 10))
}

# Microseconds since the epoch.
now() {
	printf '%s' "${EPOCHREALTIME/[.,]/}"
}
