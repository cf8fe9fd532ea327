// Any sequence of port accesses, host input, saves and restores. Each step takes three bytes: what,
// where, value.

#include "devices/serial/serial.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/check.h"
#include "src/base/event_fd.h"

namespace postern::serial {
namespace {

class Line final : public bus::IrqLine {
 public:
  [[nodiscard]] const EventFd& trigger() const override { return event_; }
  void SetLevel(bool high) override { (void)high; }

 private:
  EventFd event_ = EventFd::Create().value();
};

class Sink final : public SerialSink {
 public:
  bool Transmit(std::byte byte) override { return byte != std::byte{0x80}; }
};

// One eventfd for all runs: a signal more or less on it changes nothing.
Line& SharedLine() {
  static Line line;
  return line;
}

SerialState StateFrom(const std::uint8_t* data, std::size_t size) {
  std::array<std::uint8_t, 10> b{};
  for (std::size_t i = 0; i < b.size() && i < size; ++i) b[i] = data[i];
  return {.baud_divisor_low = b[0],
          .baud_divisor_high = b[1],
          .interrupt_enable = b[2],
          .interrupt_identification = b[3],
          .line_control = b[4],
          .line_status = b[5],
          .modem_control = b[6],
          .modem_status = b[7],
          .scratch = b[8],
          .in_buffer = std::vector<std::uint8_t>(b[9])};
}

}  // namespace
}  // namespace postern::serial

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern;
  using namespace postern::serial;
  Sink sink;
  Serial serial(SharedLine(), sink);
  // Longer inputs reach nothing that this many steps do not.
  for (std::size_t i = 0; i + 3 <= size && i < 768; i += 3) {
    const std::uint8_t what = data[i];
    std::array<std::byte, 255> buffer{};
    buffer.fill(static_cast<std::byte>(data[i + 2]));
    const std::span<std::byte> bytes(buffer.data(), std::size_t{1} << (what >> 3 & 3));
    switch (what & 7) {
      case 0:
      case 1:
      case 2: {
        const MutexLock lock(serial.lock());
        serial.Write(data[i + 1] & 7U, bytes);
        break;
      }
      case 3:
      case 4: {
        const MutexLock lock(serial.lock());
        serial.Read(data[i + 1] & 7U, bytes);
        break;
      }
      case 5: {
        CHECK(serial.Enqueue(std::span(buffer).first(data[i + 1])) <= kFifoSize);
        break;
      }
      case 6: {
        // A state of our own always comes back as it was, but for the interrupt that Restore raises
        // again.
        const SerialState state = serial.Save();
        CHECK(state.in_buffer.size() <= kFifoSize);
        Serial other(SharedLine(), sink);
        CHECK(other.Restore(state).has_value());
        SerialState again = other.Save();
        again.interrupt_identification = state.interrupt_identification;
        CHECK(again == state);
        break;
      }
      default:
        (void)serial.Restore(StateFrom(data + i, size - i));
        break;
    }
    CHECK(serial.InputSpace() <= kFifoSize);
  }
  return 0;
}
