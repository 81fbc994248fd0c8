#!/bin/sh
# The first process of a guest: loads modules, runs the tests in /tests, and says on the console how each ended.
export PATH=/bin HOME=/ LOAM_BIN_DIR=/loam LOAM_ANY_KERNEL=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "LOAM kernel $(uname -r)"
while read -r module; do
    insmod "$module"
done < /modules/list
ip link set lo up

number=0
while read -r program name; do
    echo "LOAM begin $number"
    (cd /loam && exec deps/"$program" --ignored --exact "$name" --nocapture --test-threads 1) < /dev/null 2>&1
    status=$?
    echo "LOAM end $number $status"
    # Without the first nothing else works, and that takes its time to find out.
    [ "$number $status" = "0 0" ] || [ "$number" != 0 ] || break
    number=$((number + 1))
done < /tests

echo "LOAM done"
# The console has said everything by then, and the emulator ends with the machine.
echo o > /proc/sysrq-trigger
read -r _
