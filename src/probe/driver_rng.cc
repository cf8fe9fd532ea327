// virtio-rng (VIRTIO 1.2 section 5.4).
#include "src/probe/tests.h"

namespace postern::probe {
namespace {

constexpr uint32_t kRead = 64;

bool IsZero(const uint8_t* bytes, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

bool Exercise(VirtioDevice& device, Row& row, uint32_t& total) {
  Queue* queue = device.AddQueue(0, 8, row);
  if (queue == nullptr || !device.DriverOk(row)) return false;
  auto* first = static_cast<uint8_t*>(Allocate(kRead));
  auto* second = static_cast<uint8_t*>(Allocate(kRead));
  for (uint32_t i = 0; i < kRead; ++i) first[i] = second[i] = 0;

  uint32_t length = 0;
  const Segment whole[] = {{first, kRead}};
  if (!queue->Run({}, whole, length)) return row.Fail("no answer to the first read");
  if (length == 0 || length > kRead) return row.Fail("first read: used length", length);
  if (IsZero(first, length)) return row.Fail("the first read is all zeroes");
  total += length;

  // Odd sizes and several pieces: the device must fill them in order.
  const Segment pieces[] = {{second, 7}, {second + 7, 1}, {second + 8, kRead - 8}};
  uint32_t second_length = 0;
  if (!queue->Run({}, pieces, second_length)) return row.Fail("no answer to the second read");
  if (second_length == 0 || second_length > kRead)
    return row.Fail("second read: used length", second_length);
  const uint32_t common = length < second_length ? length : second_length;
  bool same = true;
  for (uint32_t i = 0; i < common; ++i) same = same && first[i] == second[i];
  if (common >= 8 && same) return row.Fail("two reads gave the same bytes");
  if (!IsZero(second + second_length, kRead - second_length))
    return row.Fail("written beyond the used length");
  total += second_length;
  return device.InterruptsExceed(*queue, 0) || row.Fail("no interrupt arrived");
}

}  // namespace

void TestRng(Transport& transport, Row& row) {
  uint32_t total = 0;
  uint32_t interrupts = 0;
  // Twice: a device must come back from a reset as new.
  for (int round = 0; round < 2 && !row.failed(); ++round) {
    VirtioDevice device(transport);
    if (device.Begin(0, 1, row)) Exercise(device, row, total);
    interrupts += device.TotalInterrupts();
    device.End(row);
  }
  row.tested().Add("reads differ, pieces, reset and again");
  row.figures().Put(total, " bytes, ", interrupts, " interrupts");
}

}  // namespace postern::probe
