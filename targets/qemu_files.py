"""The emulated board's own files: who logs in, what starts, how its one network card is set."""

from __future__ import annotations

from types import MappingProxyType

STORE = "/var/lib/flatsat"
"""Where the agent keeps its files; on the writable overlay."""

PYTHON = "/usr/bin/python3.11"

PACKAGES = (
    *("base-files", "busybox-static", "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g"),
    *("libssl3", "libcrypt1", "libpam0g", "libaudit1", "libcap-ng0", "libselinux1", "libpcre2-8-0"),
    *("libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1"),
    *("libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libkrb5support0", "libkeyutils1"),
    *("libcom-err2", "libwrap0", "libnsl2", "libtirpc3", "libtirpc-common"),
    *("openssh-server", "openssh-sftp-server"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libffi8"),
    *("libexpat1", "libbz2-1.0", "libuuid1", "libsqlite3-0", "libreadline8", "libncursesw6"),
    *("libtinfo6", "libdb5.3", "media-types"),
)
"""What the board needs of Debian 12; apt's own closure is twice as large because of scripts."""

KERNEL = "linux-image-cloud-arm64"
"""Names the newest kernel; this flavour has ext4 built in and a third of the size."""

APPLETS = (
    *("[", "ash", "awk", "base64", "basename", "cat", "chgrp", "chmod", "chown", "chroot", "clear"),
    *("cmp", "cp", "cut", "date", "dd", "df", "diff", "dirname", "dmesg", "du", "echo", "egrep"),
    *("env", "expr", "fallocate", "false", "fgrep", "find", "free", "fsync", "getty", "grep"),
    *("gunzip", "gzip", "halt", "head", "hexdump", "hostname", "id", "ifconfig", "init", "ip"),
    *("kill", "killall", "less", "ln", "login", "logger", "ls", "lsmod", "md5sum", "mkdir"),
    *("mkfifo", "mknod", "mktemp", "more", "mount", "mountpoint", "mv", "nice", "nohup", "nproc"),
    *("od", "passwd", "pgrep", "pidof", "ping", "pkill", "poweroff", "printf", "ps", "pwd"),
    *("readlink", "realpath", "reboot", "reset", "rm", "rmdir", "route", "sed", "seq", "setsid"),
    *("sh", "sha256sum", "sleep", "sort", "stat", "strings", "stty", "su", "sync", "sysctl"),
    *("tail", "tar", "taskset", "tee", "test", "timeout", "top", "touch", "tr", "true", "truncate"),
    *("tty", "umount", "uname", "uniq", "uptime", "usleep", "vi", "wc", "which", "whoami", "xargs"),
    *("yes", "zcat"),
)
"""Commands that busybox gives where no package does."""

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
sshd:x:101:65534:sshd:/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""

_GROUP = """\
root:x:0:
tty:x:5:
disk:x:6:
utmp:x:43:
nogroup:x:65534:
"""

# The grace time is counted on the board's clock, which may run far ahead of the host's; so that
# clients that went away before they logged in don't shut others out, many may wait.
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes yes
LoginGraceTime 0
MaxStartups 200
PrintMotd no
PrintLastLog no
Subsystem sftp /usr/lib/openssh/sftp-server
"""

_INITTAB = """\
::sysinit:/etc/rc
::respawn:/usr/sbin/sshd -D -E /run/sshd.log
ttyAMA0::respawn:/usr/bin/busybox getty -L ttyAMA0 115200 vt100
::ctrlaltdel:/usr/bin/busybox reboot
::shutdown:/usr/bin/busybox sync
::shutdown:/usr/bin/busybox umount -a -r
"""

# Without randomised addresses two runs of one program execute the same instructions.
_RC = """\
#!/bin/sh
PATH=/usr/sbin:/usr/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mkdir -m 755 /run/sshd
mount -o remount,rw,noatime /
hostname -F /etc/hostname
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
echo 0 > /proc/sys/kernel/randomize_va_space
"""

_PROFILE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""

FILES = MappingProxyType(
    {
        "etc/passwd": (0o644, _PASSWD),
        "etc/group": (0o644, _GROUP),
        "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nhosts: files\n"),
        "etc/hosts": (0o644, "127.0.0.1 localhost qemu-arm64\n"),
        "etc/hostname": (0o644, "qemu-arm64\n"),
        "etc/securetty": (0o644, "console\nttyAMA0\nttyS0\nhvc0\n"),
        "etc/fstab": (0o644, ""),
        "etc/profile": (0o644, _PROFILE),
        "etc/inittab": (0o644, _INITTAB),
        "etc/rc": (0o755, _RC),
        "etc/ssh/sshd_config": (0o644, _SSHD),
    }
)
"""Path -> permissions and text; keys and passwords come with each build."""

FOLDERS = MappingProxyType(
    {
        **dict.fromkeys(("dev", "proc", "sys", "run", "mnt", "var/lib", "usr/local/bin"), 0o755),
        "tmp": 0o1777,
        "root": 0o700,
        "root/.ssh": 0o700,
        STORE.lstrip("/"): 0o755,
    }
)
"""Path -> permissions of folders that no package brings, or not so."""
