#!/bin/bash
# The built-in guest passes on a machine that is not ours: QEMU's q35 (virtio-pci) and microvm (virtio-mmio), with its software CPU.
#   qemu_test.sh PROBE.ELF
# Whoever fails a row only under Postern then knows where to look.
set -euo pipefail
elf=$1
if ! qemu=$(command -v qemu-system-x86_64); then
  reason="qemu-system-x86_64 is not installed"
  echo "SKIPPED: $reason"
  # Counted as skipped, not as passed.
  [ -z "${XML_OUTPUT_FILE:-}" ] || cat >"$XML_OUTPUT_FILE" <<END
<testsuites><testsuite name="qemu_test" tests="1" failures="0" skipped="1">
<testcase name="probe under QEMU"><skipped message="$reason"/></testcase></testsuite></testsuites>
END
  exit 0
fi
scratch=$(mktemp -d "${TEST_TMPDIR:-/tmp}/probe.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
truncate -s 16M "$scratch/disk.img"
head -c 65536 /dev/urandom | dd of="$scratch/disk.img" bs=64K seek=255 conv=notrunc status=none
sum=$(cksum <"$scratch/disk.img")
failed=0

# run NAME EXPECTED-LAST-LINE QEMU-ARGUMENTS...
run() {
  local name=$1 expected=$2 status=0
  shift 2
  timeout 100 "$qemu" -accel tcg -cpu max -nodefaults -display none -no-reboot -kernel "$elf" -chardev stdio,id=c0,signal=off \
    -drive if=none,id=d0,file="$scratch/disk.img",format=raw,discard=unmap -netdev user,id=n0 "$@" \
    </dev/null >"$scratch/out" 2>"$scratch/err" || status=$?
  tr -d '\r' <"$scratch/out" >"$scratch/text"
  echo "== $name"
  cat "$scratch/text"
  if [ "$status" != 0 ] || ! tail -n 1 "$scratch/text" | grep -qE "$expected"; then
    echo "FAILED: $name (QEMU ended with $status), expected a last line like: $expected"
    tail -n 5 "$scratch/err"
    failed=1
  fi
}

peer="probe.ip=10.0.2.15 probe.peer=10.0.2.2"
q35=(-M q35 -m 128 -smp 3
  -device virtio-serial-pci,disable-legacy=on,max_ports=1 -device virtconsole,chardev=c0
  -device virtio-blk-pci,drive=d0,serial=PROBE0,disable-legacy=on,num-queues=2
  -device virtio-net-pci,netdev=n0,disable-legacy=on -device virtio-rng-pci,disable-legacy=on)
# QEMU offers VIRTIO_F_RING_RESET by virtio-mmio too, but version 7.2 does not implement the register.
microvm=(-M microvm,pit=off,pic=off,rtc=off -m 128 -smp 2 -global virtio-mmio.force-legacy=false
  -device virtio-serial-device,max_ports=1 -device virtconsole,chardev=c0
  -device virtio-blk-device,drive=d0,serial=PROBE0,queue_reset=off -device virtio-net-device,netdev=n0 -device virtio-rng-device)

run "q35" '^probe: 10 passed, 0 failed, 2 absent$' "${q35[@]}" -append "$peer probe.require=console,blk,net,rng"
run "microvm" '^probe: 8 passed, 0 failed, 4 absent$' "${microvm[@]}" -append "$peer probe.require=console,blk,net,rng"
[ "$sum" = "$(cksum <"$scratch/disk.img")" ] || { echo "FAILED: the disk is not as it was"; failed=1; }
run "q35, required device missing" '^probe: 9 passed, 1 failed, 2 absent$' -M q35 -m 64 -smp 1 \
  -device virtio-serial-pci,disable-legacy=on,max_ports=1 -device virtconsole,chardev=c0 -device virtio-rng-pci,disable-legacy=on \
  -device virtio-blk-pci,drive=d0,disable-legacy=on -device virtio-net-pci,netdev=n0,disable-legacy=on -append "$peer probe.require=vsock"
run "a parameter nobody knows" "^probe: cannot make sense of 'probe.mode=fast'$" "${microvm[@]}" -append "probe.mode=fast"
run "blkbench" '^blkbench ops=300 qd=8 bytes=4096 .*ops_per_s=[1-9]' "${microvm[@]}" -append "probe.mode=blkbench probe.ops=300 probe.qd=8"
run "netbench" '^netbench echo ops=20 bytes=56 cycles=[1-9]' "${q35[@]}" -append "$peer probe.mode=netbench probe.ops=200 probe.size=512"
run "pio" '^pio ops=100 .*ns_per_op=[0-9]' "${microvm[@]}" -append "probe.mode=pio probe.ops=100"
run "mmio" '^mmio ops=100 .*ns_per_op=[0-9]' "${q35[@]}" -append "probe.mode=mmio probe.ops=100"
run "hostile" '^hostile  -               ok' "${q35[@]}" -append "probe.mode=hostile probe.seed=7 probe.ops=200"
exit "$failed"
